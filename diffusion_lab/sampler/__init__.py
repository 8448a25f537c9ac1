"""Samplers: one loop, with steps and correctors, each written as in its paper."""

from diffusion_lab.sampler.ancestral import DDIM, Ancestral, EulerAncestral, EulerMaruyama, ReverseDiffusion
from diffusion_lab.sampler.consistency import Consistency, for_consistency_models
from diffusion_lab.sampler.corrector import AnnealedLangevin, Langevin
from diffusion_lab.sampler.edm import EDM, Restart
from diffusion_lab.sampler.loop import Sampler, State
from diffusion_lab.sampler.multistep import PNDM, AdamsBashforth, DPMSolver, UniPC
from diffusion_lab.sampler.ode import ProbabilityFlow
from diffusion_lab.sampler.singlestep import DPMpp2SAncestral, DPMppSDE, DPMSolver2S, DPMSolverSingle, RungeKutta
from diffusion_lab.sampler.step import Corrector, Solver, Step

__all__ = [
    "DDIM",
    "EDM",
    "PNDM",
    "AdamsBashforth",
    "Ancestral",
    "AnnealedLangevin",
    "Consistency",
    "Corrector",
    "DPMSolver",
    "DPMSolver2S",
    "DPMSolverSingle",
    "DPMpp2SAncestral",
    "DPMppSDE",
    "EulerAncestral",
    "EulerMaruyama",
    "Langevin",
    "ProbabilityFlow",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "Sampler",
    "Solver",
    "State",
    "Step",
    "UniPC",
    "for_consistency_models",
]
