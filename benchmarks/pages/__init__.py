"""The generated pages and tables; `make_pages.py` writes them from the stored figures."""
