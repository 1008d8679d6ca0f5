from .auditing import (
    audit as audit,
)
from .base import (
    FloWaveNetPrior as FloWaveNetPrior,
)
from .base import (
    NetworkPrior as NetworkPrior,
)
from .base import (
    Prior as Prior,
)
from .base import (
    Priors as Priors,
)
from .base import (
    WaveformPrior as WaveformPrior,
)
from .base import (
    WaveNetPrior as WaveNetPrior,
)
from .io import (
    choose_priors as choose_priors,
)
from .io import (
    load_prior as load_prior,
)
from .io import (
    load_priors as load_priors,
)
from .io import (
    save_prior as save_prior,
)
from .io import (
    shipped_sets as shipped_sets,
)
from .spike_slab import (
    SpikeAndSlab as SpikeAndSlab,
)
from .training import (
    train_prior as train_prior,
)
