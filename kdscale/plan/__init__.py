"""Recipe and machines -> forecast: steps, memory, bytes, hours and money, from shapes alone."""

from .forecast import Forecast, PhaseForecast, forecast
from .gpus import GPUS, Gpu, gpu_named
from .known import Known
from .machines import Machines

__all__ = ["GPUS", "Forecast", "Gpu", "Known", "Machines", "PhaseForecast", "forecast", "gpu_named"]
