"""The quickstart's own crawl: documentation on this machine as web pages and PDFs."""
