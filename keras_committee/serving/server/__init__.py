"""The local stand-in for TF Serving: who answers which request, and with which version?"""
