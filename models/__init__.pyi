from .flowavenet import (
    FloWaveNet as FloWaveNet,
)
from .flowavenet import (
    FloWaveNetConfig as FloWaveNetConfig,
)
from .registry import (
    Network as Network,
)
from .registry import (
    NetworkConfig as NetworkConfig,
)
from .registry import (
    build as build,
)
from .settings import (
    TrainConfig as TrainConfig,
)
from .train import (
    fit as fit,
)
from .waveform import (
    Waveform as Waveform,
)
from .waveform import (
    WaveformConfig as WaveformConfig,
)
from .wavenet import (
    WaveNet as WaveNet,
)
from .wavenet import (
    WaveNetConfig as WaveNetConfig,
)
