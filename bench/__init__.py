"""Measures kernels/ and models/ against their references and peers; nothing imports it.

python -m bench            run from the root of the repository
"""
