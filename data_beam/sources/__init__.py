"""Where documents come from: files of any scheme, readers of crawls, the network."""
