"""Models by ear: one page with all that several models made of the same requests, and blind listening tests."""
