"""Stages of Latebind: memory that the pilot pays for, handed from payload to payload without a copy.

    with latebind.connect() as stages:
        masses = stages.open("masses").array("f8")
        with stages.create_array("hist", 1000, "u8") as output:
            output.array[:] = histogram(masses)
"""

from ._client import Client, Input, InputRow, Listing, Output, OutputRow, connect
from ._passing import Shared, read_stream, shared_input, shared_output, write_stream
from ._wire import Code, StageClass, StageError

__all__ = [
    "Client",
    "Code",
    "Input",
    "InputRow",
    "Listing",
    "Output",
    "OutputRow",
    "Shared",
    "StageClass",
    "StageError",
    "connect",
    "read_stream",
    "shared_input",
    "shared_output",
    "write_stream",
]
__version__ = "0.1.0"
