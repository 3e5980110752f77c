"""Exactness vectors and the certificate: does a verifier, in whatever language, follow the law that its rule promises?"""
