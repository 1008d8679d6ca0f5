from .musdb import (
    musdb_tracks as musdb_tracks,
)
from .source import (
    SourceAudio as SourceAudio,
)
from .source import (
    open_source as open_source,
)
from .source import (
    open_sources as open_sources,
)
from .stems import (
    load_stems as load_stems,
)
from .toy import (
    ToyMixture as ToyMixture,
)
from .toy import (
    draw_sources as draw_sources,
)
from .toy import (
    toy_mixture as toy_mixture,
)
from .tracks import (
    Track as Track,
)
from .tracks import (
    stems_folder as stems_folder,
)
