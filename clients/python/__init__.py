"""A small typed client over httpx for what the OpenAI SDK lacks, and for our own command line."""

from .admin import Admin
from .analysis_result import Analysis
from .client import Client
from .client_errors import (
    ApiError,
    BadAddress,
    BadFolder,
    ClientError,
    ConnectionFailed,
    JobFailed,
)
from .hyperparameters import Hyperparameters
from .shapes import Adapter, Checkpoint, Event, Job, Judgement, Sample, Share, UploadedFile

__all__ = [
    "Adapter",
    "Admin",
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
    "Share",
    "UploadedFile",
]
