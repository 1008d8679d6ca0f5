from .many import separate_many
from .plan import Outcome
from .stems import StemFiles

__all__ = ["Outcome", "StemFiles", "separate_many"]
