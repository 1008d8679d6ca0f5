from .known import (
    Mixing as Mixing,
)
from .known import (
    model as model,
)
from .latent import (
    LatentMixing as LatentMixing,
)
