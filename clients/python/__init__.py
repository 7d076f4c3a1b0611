"""A small typed client over httpx for what the OpenAI SDK lacks, and for our own command line."""

from clients.python.analysis_result import Analysis
from clients.python.client import Client
from clients.python.client_errors import (
    ApiError,
    BadAddress,
    BadFolder,
    ClientError,
    ConnectionFailed,
    JobFailed,
)
from clients.python.hyperparameters import Hyperparameters
from clients.python.shapes import Adapter, Checkpoint, Event, Job, Judgement, Sample, UploadedFile

__all__ = [
    "Adapter",
    "Analysis",
    "ApiError",
    "BadAddress",
    "BadFolder",
    "Checkpoint",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "Event",
    "Hyperparameters",
    "Job",
    "JobFailed",
    "Judgement",
    "Sample",
    "UploadedFile",
]
