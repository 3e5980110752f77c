"""Exactness vectors and the certificate: does a verifier in any language follow the law that its rule promises?"""
