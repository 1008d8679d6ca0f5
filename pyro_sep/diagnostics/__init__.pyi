from .convergence import (
    Diagnosis as Diagnosis,
)
from .convergence import (
    Verdict as Verdict,
)
from .convergence import (
    diagnose as diagnose,
)
from .convergence import (
    format_diagnosis as format_diagnosis,
)
from .sbc import (
    RankTest as RankTest,
)
from .sbc import (
    coverage as coverage,
)
from .sbc import (
    ranks as ranks,
)
