from .agreement import (
    plot_agreement as plot_agreement,
)
from .dashboard import (
    plot_diagnostics as plot_diagnostics,
)
from .plots import (
    plot_audit as plot_audit,
)
from .plots import (
    plot_calibration as plot_calibration,
)
from .report import (
    render_report as render_report,
)
from .report import (
    write_report as write_report,
)
from .separation import (
    plot_separation as plot_separation,
)
from .signals import (
    plot_spectrogram as plot_spectrogram,
)
from .signals import (
    plot_waveform as plot_waveform,
)
from .trajectory import (
    plot_trajectory as plot_trajectory,
)
