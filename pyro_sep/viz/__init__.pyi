from .plots import (
    plot_audit as plot_audit,
)
from .plots import (
    plot_calibration as plot_calibration,
)
from .plots import (
    plot_separation as plot_separation,
)
from .plots import (
    plot_spectrogram as plot_spectrogram,
)
from .plots import (
    plot_waveform as plot_waveform,
)
from .report import (
    render_report as render_report,
)
from .report import (
    write_report as write_report,
)
