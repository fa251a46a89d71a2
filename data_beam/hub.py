"""An export on the Hugging Face hub: a folder of files becomes a private repository there."""


def push(folder: str, repository: str, kind: str) -> str:
  """Uploads all files of a local folder, in one commit; returns the repository's address.

  Who you are is told by HF_TOKEN or `hf auth login`, where it goes by HF_ENDPOINT. A repository
  that is new is private, until you publish it there.

  Args:
    folder: a local one.
    repository: OWNER/NAME.
    kind: model or dataset.

  Raises:
    ValueError: no such name; or the hub refuses, with what it says.
  """
  import huggingface_hub
  from huggingface_hub import errors

  api = huggingface_hub.HfApi()
  try:
    api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
    api.upload_folder(
      repo_id=repository, folder_path=folder, repo_type=kind, commit_message='Exported by smoljax')
  except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as e:
    raise ValueError(f'--push_to_hub={repository}: {" ".join(str(e).split())[:300]} (log in with '
                     '`hf auth login`, or set HF_TOKEN)') from e
  return f'{api.endpoint}/{"datasets/" * (kind == "dataset")}{repository}'
