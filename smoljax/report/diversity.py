"""How varied a corpus is, before and after each stage of its curation: quality's other half.

From a sample of all documents that entered, each with the stage that dropped it (or none), one pass
gives for every point of the funnel:

- domains, topics: the effective number, exp of the Shannon entropy over documents (Hill number of
  order 1; Hill 1973). Topics are clusters of tf-idf vectors, spherical k-means over the sample.
- novelty: distinct word 5-grams / all word 5-grams, from those whose hash is below a bound.
- duplicated: share of documents with a near duplicate that is still in (MinHash 14 x 8, the
  curation's own setting: a pair of Jaccard similarity 0.8 is found with probability 0.92).

A sample of one document in k finds fewer repeats than there are: compare stages, not corpora of
different size. Memory is bounded by the sample: MAX_WORDS of a document are looked at, MAX_FEATURES
words tell topics apart, and of the n-grams a sixteenth is counted.
"""

import collections
import dataclasses
import math
import re
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

MAX_WORDS = 2000  # of a document are looked at
MAX_FEATURES = 2000  # words that tell topics apart
NGRAM = 5
BANDS, ROWS = 14, 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r'\w+')


@dataclasses.dataclass(frozen=True)
class Point:
  """One point of the funnel; None where there is too little to tell."""

  stage: str  # after which; '' before the first
  documents: int  # of the sample
  domains: float | None
  topics: float | None
  novelty: float | None
  duplicated: float | None


@dataclasses.dataclass(frozen=True)
class Topic:
  """A cluster of documents: its most telling words, its shares of what came in and was kept."""

  words: tuple[str, ...]
  before: float
  after: float


def host(url: str) -> str:
  """The host name of a URL, '' where there is none."""
  try:
    return urllib.parse.urlsplit(url).hostname or ''
  except ValueError:
    return ''


def effective(labels: Iterable) -> float | None:
  """exp(entropy) of how often each label occurs: how many equally frequent ones are as varied."""
  counts = np.array(list(collections.Counter(labels).values()), np.float64)
  if not len(counts):
    return None
  p = counts / counts.sum()
  return float(np.exp(-(p * np.log(p)).sum()))


def measure(
  documents: Sequence[Mapping], fates: Sequence[int], stages: Sequence[str],
) -> tuple[list[Point], list[Topic]]:
  """The funnel's points and the topics of a sample.

  Args:
    documents: with 'text' and 'url'.
    fates: of each, the index of the stage that dropped it; len(stages) if none did.
    stages: names, in order.
  """
  fate_D = np.asarray(fates, np.int64)
  vocabulary: dict[str, int] = {}
  words_D = []
  for document in documents:
    found = _WORD.findall(document.get('text', '')[: 12 * MAX_WORDS].lower())[:MAX_WORDS]
    ids = [vocabulary.setdefault(word, len(vocabulary)) for word in found]
    words_D.append(np.array(ids, np.int64))
  hashes_V = np.array([zlib.crc32(word.encode('utf-8', 'replace')) for word in vocabulary],
                      np.uint64)
  grams_D = [_ngrams(hashes_V[words]) for words in words_D]
  topic_D, names = _topics(words_D, list(vocabulary))
  cluster_D = _clusters(grams_D)
  novelty = _novelty(grams_D, fate_D, len(stages))
  hosts = [host(document.get('url', '')) for document in documents]

  points = []
  for i, stage in enumerate(['', *stages]):
    alive = np.flatnonzero(fate_D >= i)
    members = collections.Counter(cluster_D[alive].tolist())
    shared = sum(n for cluster, n in members.items() if n > 1 and cluster >= 0)
    clustered = sum(n for cluster, n in members.items() if cluster >= 0)
    points.append(Point(
      stage, len(alive), effective(hosts[d] for d in alive if hosts[d]),
      effective(t for t in topic_D[alive].tolist() if t >= 0) if names else None,
      novelty[i], shared / clustered if clustered else None))

  kept = fate_D == len(stages)
  before, after = (np.bincount(t[t >= 0], minlength=len(names))
                   for t in (topic_D, topic_D[kept]))
  topics = [Topic(names[k], before[k] / max(1, before.sum()), after[k] / max(1, after.sum()))
            for k in np.argsort(-before, kind='stable') if before[k]]
  return points, topics


def _ngrams(hashes: np.ndarray) -> np.ndarray:
  """A 64-bit hash of each n-gram, `[words]` → `[words - n + 1]` uint64."""
  if len(hashes) < NGRAM:
    return np.zeros(0, np.uint64)
  size = len(hashes) - NGRAM + 1
  with np.errstate(over='ignore'):
    out = np.zeros(size, np.uint64)
    for i in range(NGRAM):
      out = out * _GOLDEN + hashes[i:i + size] + np.uint64(1)
    out = (out ^ (out >> np.uint64(32))) * _GOLDEN  # spreads what differs in few bits
    return out ^ (out >> np.uint64(29))


def _novelty(
  grams_D: Sequence[np.ndarray], fate_D: np.ndarray, num_stages: int,
) -> list[float | None]:
  """Distinct / all n-grams among the documents that are left, at each point of the funnel."""
  kept = [g[g < np.uint64(1 << 60)] for g in grams_D]
  grams = np.concatenate([*kept, np.zeros(0, np.uint64)])
  fates = np.repeat(fate_D, [len(g) for g in kept])
  order = np.argsort(grams, kind='stable')
  grams, fates = grams[order], fates[order]
  starts = np.flatnonzero(np.concatenate([[True], grams[1:] != grams[:-1]])) if len(grams) else []
  last = np.maximum.reduceat(fates, starts) if len(grams) else fates
  out = []
  for i in range(num_stages + 1):
    total = int((fates >= i).sum())
    out.append(int((last >= i).sum()) / total if total else None)
  return out


def _clusters(grams_D: Sequence[np.ndarray]) -> np.ndarray:
  """Cluster of near duplicates of each document, -1 where it is too short, `[documents]`."""
  random = np.random.default_rng(0)
  a_H, b_H = random.integers(0, 1 << 63, (2, BANDS * ROWS, 1), np.uint64)
  a_H |= np.uint64(1)
  parents = list(range(len(grams_D)))

  def root(x: int) -> int:
    while parents[x] != x:
      parents[x] = parents[parents[x]]
      x = parents[x]
    return x

  seen: dict[tuple[int, bytes], int] = {}
  for d, grams in enumerate(grams_D):
    if not len(grams):
      continue
    with np.errstate(over='ignore'):
      signature = (a_H * np.unique(grams) + b_H).min(axis=1).reshape(BANDS, ROWS)
    for band, row in enumerate(signature):
      parents[root(d)] = root(seen.setdefault((band, row.tobytes()), d))
  return np.array([root(d) if len(g) else -1 for d, g in enumerate(grams_D)], np.int64)


def _topics(
  words_D: Sequence[np.ndarray], vocabulary: Sequence[str], most: int = 24,
) -> tuple[np.ndarray, list[tuple[str, ...]]]:
  """(topic of each document or -1, telling words of each topic); no topics for few documents."""
  documents = [d for d, words in enumerate(words_D) if len(words) >= 20]
  topic_D = np.full(len(words_D), -1, np.int64)
  if len(documents) < 60:
    return topic_D, []
  frequency = np.zeros(len(vocabulary), np.int64)
  for d in documents:
    frequency[np.unique(words_D[d])] += 1
  word_like = np.array([len(w) > 2 and w.isalpha() for w in vocabulary])
  # Words that a fifth of the documents have say nothing, and neither do those that three have.
  usable = np.flatnonzero(word_like & (frequency <= len(documents) / 5) & (frequency > 3))
  usable = usable[np.argsort(-frequency[usable], kind='stable')[:MAX_FEATURES]]
  if len(usable) < 20:
    return topic_D, []
  column = np.full(len(vocabulary), -1, np.int64)
  column[usable] = np.arange(len(usable))
  weight_F = np.log(len(documents) / frequency[usable]).astype(np.float32)
  x_DF = np.zeros((len(documents), len(usable)), np.float32)
  for i, d in enumerate(documents):
    columns = column[words_D[d]]
    counts = np.bincount(columns[columns >= 0], minlength=len(usable))
    x_DF[i] = np.log1p(counts) * weight_F
  x_DF /= np.maximum(np.linalg.norm(x_DF, axis=1, keepdims=True), 1e-9)

  labels, centre_KF = _kmeans(x_DF, min(most, max(2, math.isqrt(len(documents) // 2))))
  topic_D[documents] = labels
  mean_F = x_DF.mean(axis=0)
  return topic_D, [tuple(vocabulary[usable[f]] for f in np.argsort(mean_F - centre)[:5])
                   for centre in centre_KF]


def _kmeans(x_DF: np.ndarray, k: int, rounds: int = 20) -> tuple[np.ndarray, np.ndarray]:
  """Spherical k-means from k-means++ (Arthur, Vassilvitskii 2007): labels, centres [K, F]."""
  random = np.random.default_rng(0)
  chosen = [int(random.integers(len(x_DF)))]
  distance_D = 1 - x_DF @ x_DF[chosen[0]]
  while len(chosen) < k:
    p = np.maximum(distance_D, 0).astype(np.float64)
    chosen.append(int(random.choice(len(x_DF), p=p / p.sum()) if p.sum() > 0 else len(chosen)))
    distance_D = np.minimum(distance_D, 1 - x_DF @ x_DF[chosen[-1]])
  centre_KF = x_DF[chosen]
  labels = np.full(len(x_DF), -1)
  for _ in range(rounds):
    nearest = (x_DF @ centre_KF.T).argmax(axis=1)
    if (nearest == labels).all():
      break
    labels = nearest
    for c in range(k):
      if (labels == c).any():
        mean = x_DF[labels == c].mean(axis=0)
        centre_KF[c] = mean / max(float(np.linalg.norm(mean)), 1e-9)
  return labels, centre_KF
