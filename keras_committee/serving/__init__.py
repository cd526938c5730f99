"""How does a committee answer requests, and what must TF Serving find on disk?"""
