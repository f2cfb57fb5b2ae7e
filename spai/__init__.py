"""SPAI: any-resolution AI-generated image detection by spectral learning.

    import spai
    detector = spai.load_detector("weights/spai.pth", device="auto")
    scores = detector.score(["photo.jpg"])

Names are imported when they are used, so that importing the package is quick.
"""

from typing import TYPE_CHECKING, Any

from spai._version import __version__

if TYPE_CHECKING:
    from spai.detectors import Detector, Scores, load_detector

__all__ = ["Detector", "Scores", "__version__", "load_detector"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from spai import detectors

        return getattr(detectors, name)
    raise AttributeError(f"module 'spai' has no attribute {name!r}")
