"""Recording a sampler: its steps, written for tensors, run once on linear forms, which yields their coefficients.

Every published step is linear in x, in what the network predicts and in fresh noise.  A `Form` is such a linear
combination with numbers of Python in float64; a step that is called with forms returns one, whatever it computes in
between.  What is left to do for a batch is a few fused multiply-adds (`plan.Plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.sampler.engine import Engine
from diffusion_lab.sampler.prediction import Prediction
from diffusion_lab.sampler.scalar_process import ScalarProcess


class NotLinear(TypeError):
    """What was asked of a form is not linear: the step has to be run on tensors, as it is written."""

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
            return Form(dict(self.terms))
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


@dataclass(frozen=True, slots=True)
class Evaluate:
    """array = network(source, t), or the prediction of x_0 after the sampler's threshold."""

    array: int
    source: int
    t: float
    thresholded: bool

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,)


@dataclass(frozen=True, slots=True)
class Combine:
    """array = sum of the terms."""

    array: int
    terms: dict[int, float]

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(self.terms)


@dataclass(frozen=True, slots=True)
class Draw:
    """array = fresh noise, N(0, I)."""

    array: int
    reads: ClassVar[tuple[int, ...]] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """array = what a method of `Engine` gives for tensors: (step, source, *times)."""

    array: int
    source: int
    method: Literal["step", "correct", "last"]
    step: Callable[..., Any]
    times: tuple[float, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,)


@dataclass(frozen=True, slots=True)
class Show:
    """The state after a step; x0 is None where a step that was run has made the last prediction."""

    t: float
    x: int
    x0: int | None

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,) if self.x0 is None else (self.x, self.x0)


Instruction = Evaluate | Combine | Draw | Run | Show


class Recorder(Engine):
    """Calls steps with forms, and notes what they compute.

    Args:
        as_written: steps and correctors that are known to be run on tensors.
    """

    def __init__(
        self, denoiser: Denoiser, p: ScalarProcess, thresholded: bool, as_written: Collection[Callable[..., Any]] = ()
    ) -> None:
        super().__init__(denoiser, p, thresholded)
        self.as_written = as_written
        self.instructions: list[Instruction] = []
        self.arrays = 1  # the first is the initial state

    def new(self) -> int:
        """The number of one more array."""
        self.arrays += 1
        return self.arrays - 1

    def noise(self, std: float = 1.0) -> Form | float:
        if std == 0:
            return 0.0
        array = self.new()
        self.instructions.append(Draw(array))
        return Form({array: std})

    def array(self, x: Form) -> int:
        """The number of an array that is the form; the form is that array from now on."""
        terms = {array: weight for array, weight in x.terms.items() if weight != 0}
        if list(terms.values()) != [1.0]:
            array = self.new()
            self.instructions.append(Combine(array, terms))
            terms = {array: 1.0}
        x.terms = terms
        return next(iter(terms))

    def denoise(self, x: Form, t: float) -> Prediction:
        source, output = self.array(x), self.new()
        self.instructions.append(Evaluate(output, source, t, self.thresholded))
        return self.predicted(t, Form({source: 1.0}), Form({output: 1.0}))

    def step(self, step: Callable[..., Any], x: Form, t: float, s: float) -> Form:
        return self.attempt("step", step, x, t, s)

    def correct(self, corrector: Callable[..., Any], x: Form, t: float) -> Form:
        past = self.before(t)
        x = self.attempt("correct", corrector, x, t)
        self.past = past
        return x

    def last(self, step: Callable[..., Any] | None, x: Form, t: float) -> Form:
        return self.attempt("last", step, x, t)

    def attempt(self, method: Literal["step", "correct", "last"], step: Any, x: Form, *times: float) -> Form:
        """What a step gives from x, which is made an array first; NotLinear names the step.

        A step that has to be run on tensors gives a new array.
        """
        source = self.array(x)
        if step in self.as_written:
            array = self.new()
            self.instructions.append(Run(array, source, method, step, times))
            self.latest = None
            return Form({array: 1.0})
        try:
            return getattr(super(), method)(step, x, *times)
        except NotLinear as error:
            error.step = step
            raise

    def follow(self, states: Iterator[tuple[float, Form]], shown: bool) -> None:
        """Note what the loop computes, and which states it gives: all of them, or the last."""
        for t, x in states:
            if shown:
                self.show(t, x)
        if not shown:
            self.instructions.append(Show(t, self.array(x), None))

    def show(self, t: float, x: Form) -> None:
        """A state with the latest prediction of x_0; at the end both are one."""
        array = self.array(x)
        x0 = array if t == 0 else self.latest and self.array(self.latest.x0)
        self.instructions.append(Show(t, array, x0))
