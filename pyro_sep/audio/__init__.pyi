from .io import (
    Recording as Recording,
)
from .io import (
    active_frames as active_frames,
)
from .io import (
    load_audio as load_audio,
)
from .io import (
    read_audio as read_audio,
)
from .io import (
    save_audio as save_audio,
)
from .resampling import (
    resample as resample,
)
