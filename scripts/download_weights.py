"""Download a model file: the same as `spai weights download`, run as a script.

python scripts/download_weights.py spai --destination weights
"""

from spai.cli.weights import download

if __name__ == "__main__":
    download()
