r"""Separation without a posterior: baselines, and the best that a mask can do.

Masks weight the short-time Fourier transform X of the mixture by the magnitudes V_k of the stems,

.. math:: \hat X_k = \frac{V_k^2}{\sum_j V_j^2} X

(Liutkus & Badeau 2015, ICASSP, "Generalized Wiener filtering with fractional power spectrograms",
at the exponent 2), so that the estimates add up to the mixture.

librosa and scikit-learn come with the extra ``music``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt
from torch import Tensor

from pyro_sep.checks.optional import import_optional
from pyro_sep.data.source import SourceAudio

# 128 ms and 8 Hz at 16 kHz: on training tracks all do better on average than with half of it.
SIZE = 2048  # audio samples per frame
HOP = SIZE // 4

# A bass guitar's open strings begin at 41 Hz, and the twelfth fret of its highest is at 196 Hz: its
# fundamentals are below. So is most of a kick drum, which the filter gives to the bass.
CUTOFF = 200.0  # Hz
ORDER = 4  # of the Butterworth filter; there and back, it falls off by 48 dB an octave

KERNEL = 31  # frames, and frequencies, of a median filter: librosa's default

TRAINING_SECONDS = 200  # of each stem, that an NMF learns from
COMPONENTS = 32  # spectra of a stem's dictionary
ITERATIONS = 200  # of the multiplicative updates

#: Stems that a method needs, where it treats them by name.
NEEDED = {"low-pass": "bass and drums alone", "hpss": "drums and at least another"}


def applies(method: str, stems: Sequence[str]) -> bool:
    """Whether a method can separate these stems."""
    if method == "low-pass":
        return sorted(stems) == ["bass", "drums"]
    return method != "hpss" or ("drums" in stems and len(stems) > 1)


def check_stems(method: str, stems: Sequence[str]) -> None:
    """Raise ValueError unless the method :func:`applies`."""
    if not applies(method, stems):
        raise ValueError(
            f"{method}: got stems {', '.join(stems)}, expected {NEEDED[method]}; leave it out"
        )


def low_pass(mixture: Tensor, stems: Sequence[str], sample_rate: int) -> Tensor:
    """Bass as the part below :data:`CUTOFF`, without a shift of phase, and drums as the rest.

    Args:
        mixture: ``(time,)``.
        stems: bass and drums, in the order of the result.
        sample_rate: in Hz.

    Returns:
        ``(stem, time)``, which add up to the mixture.

    Raises:
        ValueError: other stems.
    """
    check_stems("low-pass", stems)
    low = _below_cutoff(mixture, sample_rate)
    parts = {"bass": low, "drums": mixture - low}
    return torch.stack([parts[stem] for stem in stems])


def hpss(mixture: Tensor, stems: Sequence[str], sample_rate: int) -> Tensor:
    """Drums as the percussive part; of two stems the other one as the harmonic part.

    Median filters along time and along frequency give V for the two (FitzGerald 2010, DAFx,
    "Harmonic/percussive separation using median filtering"; ``librosa.decompose.hpss``). Of three
    stems or more, bass is the harmonic part below :data:`CUTOFF`, and all others are the rest of
    the harmonic part: the method cannot separate them, and their sum counts it more than once.

    Args:
        mixture: ``(time,)``.
        stems: drums and others, in the order of the result.
        sample_rate: in Hz.

    Returns:
        ``(stem, time)``.

    Raises:
        ValueError: no drums, nothing beside them, or no librosa.
    """
    check_stems("hpss", stems)
    decompose = _import("hpss", "librosa").decompose
    spectrum = _transform(mixture)
    kernels = (min(KERNEL, spectrum.shape[-1]), KERNEL)  # SciPy's filter fails on far fewer frames
    masks = decompose.hpss(spectrum.abs().numpy(), kernel_size=kernels, mask=True)
    harmonic, percussive = (
        _inverse(torch.from_numpy(mask).to(mixture) * spectrum, len(mixture)) for mask in masks
    )
    parts = dict.fromkeys(stems, harmonic) | {"drums": percussive}
    if len(stems) > 2 and "bass" in stems:
        low = _below_cutoff(harmonic, sample_rate)
        parts = dict.fromkeys(stems, harmonic - low) | {"drums": percussive, "bass": low}
    return torch.stack([parts[stem] for stem in stems])


def learn_dictionaries(
    sources: Iterable[SourceAudio], rate: int, seed: int
) -> dict[str, NDArray[Any]]:
    """A dictionary of each stem by name, from :data:`TRAINING_SECONDS` of isolated audio."""
    dictionaries = {}
    for audio in sources:
        frames = audio.draw(TRAINING_SECONDS, rate, torch.Generator().manual_seed(seed))
        dictionaries[audio.name] = learn_dictionary(frames, seed=seed)
    return dictionaries


def learn_dictionary(frames: Tensor, components: int = COMPONENTS, seed: int = 0) -> NDArray[Any]:
    r"""Spectra whose sums approximate a stem's magnitudes, by non-negative matrix factorisation.

    .. math:: |X_{ft}| \approx \sum_c a_{tc} d_{cf}, \qquad a, d \ge 0

    of the least generalised Kullback-Leibler divergence (Lee & Seung 2001, NIPS, "Algorithms for
    non-negative matrix factorization"; ``sklearn.decomposition.NMF``).

    Args:
        frames: isolated audio ``(frame, time)``, as the stem's prior is trained on.
        components: number of spectra.
        seed: of the start.

    Returns:
        d, ``(component, frequency)``.

    Raises:
        ValueError: no scikit-learn.
    """
    decomposition = _import("nmf", "sklearn.decomposition")
    model = decomposition.NMF(
        components,
        init="random",
        solver="mu",
        beta_loss="kullback-leibler",
        tol=0,
        max_iter=ITERATIONS,
        random_state=seed,
    )
    return model.fit(_transform(frames).abs().mT.flatten(0, 1).numpy()).components_


def nmf(mixture: Tensor, dictionaries: Mapping[str, NDArray[Any]]) -> Tensor:
    r"""Stems by a mask, from the mixture's magnitudes as sums of the spectra of all stems.

    The activations a of the stems' fixed dictionaries d side by side minimise the divergence of
    :func:`learn_dictionary`, and :math:`V_k = \sum_{c \in k} a_{tc} d_{cf}` (Smaragdis, Raj &
    Shashanka 2007, ICA, "Supervised and semi-supervised separation of sounds from single-channel
    mixtures").

    Args:
        mixture: ``(time,)``.
        dictionaries: of :func:`learn_dictionary`, by stem.

    Returns:
        ``(stem, time)``, which add up to the mixture.

    Raises:
        ValueError: no scikit-learn.
    """
    decomposition = _import("nmf", "sklearn.decomposition")
    spectra = torch.cat([torch.from_numpy(part).to(mixture) for part in dictionaries.values()])
    activations, _, _ = decomposition.non_negative_factorization(
        _transform(mixture).abs().T.numpy(),
        H=spectra.numpy(),
        n_components=len(spectra),
        update_H=False,
        solver="mu",
        beta_loss="kullback-leibler",
        tol=0,
        max_iter=ITERATIONS,
    )
    sizes = [len(part) for part in dictionaries.values()]
    parts = zip(torch.from_numpy(activations).split(sizes, 1), spectra.split(sizes), strict=True)
    return _masked(mixture, torch.stack([(own @ part).T for own, part in parts]))


def ideal_ratio_mask(mixture: Tensor, sources: Tensor) -> Tensor:
    """The mixture masked by the magnitudes of the true stems, an upper bound for masks.

    IRM2 of Stöter, Liutkus & Ito 2018 (arXiv 1804.06267).

    Args:
        mixture: ``(time,)``.
        sources: the true stems ``(stem, time)``.

    Returns:
        ``(stem, time)``, which add up to the mixture.
    """
    return _masked(mixture, _transform(sources).abs())


def _masked(mixture: Tensor, magnitudes: Tensor) -> Tensor:
    """The masked mixture for V ``(stem, frequency, frame)``; equal parts where all V are zero."""
    powers = magnitudes.square() + torch.finfo(magnitudes.dtype).tiny
    return _inverse(powers / powers.sum(0) * _transform(mixture), len(mixture))


def _transform(audio: Tensor) -> Tensor:
    """Short-time Fourier transform ``(..., frequency, frame)``, with silence beyond both ends."""
    window = torch.hann_window(SIZE, dtype=audio.dtype)
    return torch.stft(audio, SIZE, HOP, window=window, pad_mode="constant", return_complex=True)


def _inverse(spectrum: Tensor, time: int) -> Tensor:
    window = torch.hann_window(SIZE, dtype=spectrum.real.dtype)
    return torch.istft(spectrum, SIZE, HOP, window=window, length=time)


def _below_cutoff(signal: Tensor, sample_rate: int) -> Tensor:
    sections = butter(ORDER, CUTOFF, fs=sample_rate, output="sos")
    return torch.from_numpy(sosfiltfilt(sections, signal.numpy()).copy()).to(signal)


def _import(method: str, module: str) -> Any:
    return import_optional(module, method, "music")
