"""What a separation is of: its audio checked, and every default filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_sep.checks.arguments import audio, choice, shown
from pyro_sep.inference.annealing.settings import Annealing
from pyro_sep.inference.posterior import AnnealedPosterior
from pyro_sep.mixing.known import LinearMixing, Mixing
from pyro_sep.mixing.latent import Gains, Infer, known_mixing, start_mixing
from pyro_sep.priors.base import Estimate, Prior, Priors, device_of
from pyro_sep.priors.spike_slab import SpikeAndSlab
from pyro_sep.priors.stereo import channels_of
from pyro_sep.separation.initial import checked_initial
from pyro_sep.separation.inputs import (
    Audio,
    check_device,
    check_mixtures,
    check_separable,
    interleaved,
)
from pyro_sep.separation.presets import (
    CONSTRAINTS,
    Constraint,
    Preset,
    default_constraint,
    relative_loudness,
    resolve_estimate,
    resolve_settings,
)


@dataclass(frozen=True)
class Problem:
    """Mixtures, and how they are separated.

    Attributes:
        mixtures: ``(mixture, time)``, or of two channels ``(mixture, channel, time)``.
        frames: the mixtures, channels interleaved, ``(mixture, time)``.
        priors: of the sources, by name.
        laws: priors of the sources, which may be silent where presence is inferred.
        mixing: gains and noise, or where they are inferred what they are compared with.
        settings: of the sampler.
        estimate: ``"mode"`` or ``"mean"``.
        constraint: ``"gaussian"`` or ``"exact"``.
        infer_gains: whether gains are unknown.
        infer_noise: whether the mixture's own noise is.
        stems: frames that chains begin from, ``(mixture, source, time)``; None where they search.
    """

    mixtures: Tensor
    frames: Tensor
    priors: Priors
    laws: Sequence[Prior]
    mixing: Mixing
    settings: Annealing
    estimate: str
    constraint: str
    infer_gains: bool
    infer_noise: bool
    stems: Tensor | None

    @property
    def inferred(self) -> bool:
        """Whether gains or noise are unknown."""
        return self.infer_gains or self.infer_noise

    @property
    def average(self) -> bool:
        """Whether the estimate is the mean of all draws, as of frames that hold many decisions."""
        return self.estimate == "mean"

    def posterior(self, frames: Tensor) -> AnnealedPosterior:
        """The posterior of frames ``(batch, time)``, some of these or sections of them."""
        mixing: LinearMixing = self.mixing
        if self.inferred:
            unknown = (self.infer_gains, self.infer_noise)
            mixing = start_mixing(frames, self.priors, self.mixing, *unknown)
        exact = self.constraint == "exact"
        return AnnealedPosterior(frames, self.laws, mixing, exact, by_spectrum=self.average)


def pose(
    mixtures: Audio,
    priors: Priors,
    fields: Mapping[str, Any],
    *,
    gains: Gains | Infer | None,
    noise_scale: float | Infer,
    constraint: Constraint | None,
    presence: Infer | None,
    estimate: Estimate | None,
    preset: Preset | None,
    initial: Audio | None,
    settings: Annealing | None,
    stored: bool = False,
) -> Problem:
    """The problem that the arguments of :func:`~pyro_sep.separate_batch` state.

    ``fields`` are those of :class:`~pyro_sep.inference.Annealing`; ``stored`` tells whether draws
    go to a store.

    Raises:
        ValueError: mixtures, priors, gains or settings that do not fit; initial stems that are not
            of these mixtures.
    """
    check_separable(priors)
    mixing = known_mixing(priors, gains, noise_scale)
    check_device("mixtures", mixtures, priors)
    given = audio("mixtures", mixtures, device_of(priors))
    check_mixtures(given, channels_of(priors))
    frames = interleaved(given, priors)
    infer_gains, infer_noise = isinstance(gains, str), isinstance(noise_scale, str)
    if presence is not None and not (isinstance(presence, str) and presence == "infer"):
        raise ValueError(
            f"presence: got {shown(presence)}, expected 'infer', or None where all are present"
        )
    may_be_silent, inferred = presence is not None, infer_gains or infer_noise
    tie = _constraint(constraint, mixing, may_be_silent, inferred, stored)
    loudness, time = relative_loudness(frames, priors, mixing), frames.shape[-1]
    plan = resolve_settings(priors, time, estimate, preset, settings, loudness=loudness, **fields)
    stems = None
    if initial is not None:
        unknown = {"gains": gains, "noise_scale": noise_scale, "presence": presence}
        stems = checked_initial(initial, given, priors, {**fields, **unknown})
    own = tuple(priors.values())
    return Problem(
        mixtures=given,
        frames=frames,
        priors=priors,
        laws=[SpikeAndSlab(prior) for prior in own] if may_be_silent else own,
        mixing=mixing,
        settings=plan,
        estimate=resolve_estimate(priors, estimate),
        constraint=tie,
        infer_gains=infer_gains,
        infer_noise=infer_noise,
        stems=stems,
    )


def _constraint(
    given: Constraint | None, mixing: Mixing, may_be_silent: bool, inferred: bool, stored: bool
) -> str:
    """The constraint that is given, or the default.

    Raises:
        ValueError: another word, or gains or noise to infer where they cannot be.
    """
    if given is None:
        # experiments/presence.py: 40 mixtures of 40 are right by the likelihood, 3 of 5 if exact.
        given = "gaussian" if may_be_silent or inferred else default_constraint(mixing)
    tie = choice("constraint", given, CONSTRAINTS)
    if inferred and (tie == "exact" or stored):
        raise ValueError(
            "gains: got 'infer', or noise_scale did, with an exact constraint or a store, expected "
            "neither; give their numbers"
        )
    return tie
