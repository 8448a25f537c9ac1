"""Recording a sampler: steps written for tensors run once on linear forms, which yields their coefficients.

Every published step is linear in x, in what the network predicts and in fresh noise.  A `Form` is such a linear
combination with numbers of Python in float64; a step that is called with forms returns one, whatever it computes in
between.  What is left to do for a batch is a few fused multiply-adds (`plan.Plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.sampler.engine import Engine, Kind
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Prediction


class NotLinear(TypeError):
    """An operation on a form that is not linear: the step must run on tensors."""

    step: Callable[..., Any] | None = None


class Form:
    """sum_k weight_k array_k, where an array is known by its number.

    Sums of forms and products with numbers are forms; anything else raises NotLinear.
    """

    __slots__ = ("terms",)
    __array_ufunc__ = None  # a number of numpy leaves a product with a form to the form

    def __init__(self, terms: dict[int, float]) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> Form:
        if isinstance(other, Form):
            terms = dict(self.terms)
            for array, weight in other.terms.items():
                terms[array] = terms.get(array, 0.0) + weight
            return Form(terms)
        if isinstance(other, int | float) and other == 0:
            return self
        raise NotLinear("a number is added to an array")

    def __mul__(self, factor: Any) -> Form:
        if not isinstance(factor, int | float):
            raise NotLinear("an array is multiplied by something that is no number")
        return Form({array: weight * factor for array, weight in self.terms.items()})

    def __truediv__(self, divisor: Any) -> Form:
        if not isinstance(divisor, int | float):
            raise NotLinear("an array is divided by something that is no number")
        return Form({array: weight / divisor for array, weight in self.terms.items()})

    def __neg__(self) -> Form:
        return self * -1.0

    def __sub__(self, other: Any) -> Form:
        return self + -other

    def __rsub__(self, other: Any) -> Form:
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotLinear("a step does more to its arrays than add them and multiply them by numbers")

    __getattr__ = __getitem__ = __setitem__ = __contains__ = __len__ = __iter__ = __call__ = __hash__ = _refuse
    __bool__ = __float__ = __int__ = __index__ = __complex__ = __round__ = __abs__ = __pow__ = __rpow__ = _refuse
    __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __matmul__ = __rmatmul__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise NotLinear("a function of torch is called with an array")


def not_recorded() -> Any:
    """Raise NotLinear: a gradient is evaluated on tensors."""
    raise NotLinear("the mean of a step is shifted by a gradient")


def operations(terms: dict[int, float]) -> int:
    """Passes over memory that a sum takes: one for each term, but none to scale a first one of weight 1."""
    return len(terms) - (1.0 in terms.values())


class Evaluate(NamedTuple):
    """array = the network's output at reads[0] and t, or its prediction of x_0 after the sampler's threshold."""

    array: int
    reads: tuple[int]
    t: float
    thresholded: bool


class Combine(NamedTuple):
    """array = sum_k weights[k] reads[k]."""

    array: int
    reads: tuple[int, ...]
    weights: tuple[float, ...]


class Draw(NamedTuple):
    """array = fresh noise, N(0, I)."""

    array: int
    reads: tuple[()] = ()


class Run(NamedTuple):
    """array = reads[0] after a step that is run on tensors, by a method of `Engine` at these times."""

    array: int
    reads: tuple[int]
    kind: Kind
    step: Callable[..., Any]
    times: tuple[float, ...]


class Show(NamedTuple):
    """The state after a step: reads = (x, x_0), or (x,) where a step that was run has made the last prediction."""

    t: float
    reads: tuple[int, ...]
    array: None = None


Instruction = Evaluate | Combine | Draw | Run | Show


class Recorder(Engine):
    """Calls steps with forms, and records what they compute.

    Args:
        as_written: steps and correctors that are known to be run on tensors.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        p: ScalarProcess,
        thresholded: bool = False,
        as_written: Collection[Callable[..., Any]] = (),
    ) -> None:
        super().__init__(denoiser, p, thresholded)
        self.as_written = as_written
        self.instructions: list[Instruction] = []
        self.arrays = 1  # the first is the initial state
        self.latest_sum: tuple[int, dict[int, float]] = (0, {})

    def note(self, kind: type[Instruction], *of_what: Any) -> Form:
        """One more array, made by an instruction."""
        self.instructions.append(kind(self.arrays, *of_what))
        self.arrays += 1
        return Form({self.arrays - 1: 1.0})

    def noise(self, std: float = 1.0) -> Form | float:
        return self.note(Draw) * std if std else 0.0

    def array(self, x: Form) -> int:
        """The number of an array that equals the form; the form refers to that array from now on."""
        terms = {array: weight for array, weight in x.terms.items() if weight != 0} or x.terms
        if list(terms.values()) != [1.0]:
            least = self.from_latest_sum(terms)
            if len(least) > 1 or 1.0 not in least.values():
                least = self.note(Combine, tuple(least), tuple(least.values())).terms
            self.latest_sum, terms = (next(iter(least)), terms), least
        x.terms = terms
        return next(iter(terms))

    def from_latest_sum(self, terms: dict[int, float]) -> dict[int, float]:
        """The same sum with the fewest operations, when the latest one replaces an array common to both.

        Heun's step from x makes u = c x + a F and then b x + d F + e u + g F'; with F from u, three terms are left.
        """
        array, latest = self.latest_sum
        best = terms
        for common in latest.keys() & terms.keys():
            factor = terms[common] / latest[common]
            if abs(factor) <= 1:  # larger ones would magnify rounding
                sums = {one: terms.get(one, 0.0) - factor * latest.get(one, 0.0) for one in terms | latest}
                sums[array] = sums.get(array, 0.0) + factor
                kept = {one: weight for one, weight in sums.items() if one != common and abs(weight) > 1e-15}
                best = min(best, kept, key=operations)
        return best

    def predict(self, x: Form, t: float, thresholded: bool) -> Prediction:
        source = self.array(x)
        output = self.note(Evaluate, (source,), t, thresholded)
        fraction = Form({}) if self.denoiser.parameterization.learned_range else None  # no step is linear in it
        gradient = self.denoiser.mean_gradient and not_recorded
        coefficients = self.coefficients(t, thresholded)
        self.latest = Prediction(t, Form({source: 1.0}), output, coefficients, fraction, gradient)
        return self.latest

    def apply(self, kind: Kind, step: Callable[..., Any] | None, x: Form, *times: float) -> Form:
        """x after a step, which is recorded or, where that is known to fail, noted to be run; NotLinear names it."""
        source = self.array(x)
        if step in self.as_written or (kind == "back" and self.as_written):
            self.latest = self.latest if kind in ("back", "control") else None  # those make no prediction
            self.past = [] if kind == "back" else self.past  # as in `Engine.back`
            return self.note(Run, (source,), kind, step, times)
        try:
            return super().apply(kind, step, x, *times)
        except NotLinear as error:
            error.step = step
            raise

    def follow(self, states: Iterator[tuple[float, Form]], shown: bool) -> list[Instruction]:
        """Instructions of the whole loop, and the states to show: all of them, or the last."""
        for t, x in states:
            if shown:
                array = self.array(x)
                x0 = array if t == 0 else self.latest and self.array(self.latest.x0)
                self.instructions.append(Show(t, (array,) if x0 is None else (array, x0)))
        if not shown:
            self.instructions.append(Show(t, (self.array(x),)))
        return self.instructions
