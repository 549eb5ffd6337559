# SPDX-License-Identifier: Apache-2.0
"""Write large messages to an mcap file without the copies in memory that the writer of `rosbags` makes of them.

A cloud of 4.7 MB is copied four times there, which takes more processor time than the node's publishing. A message
written here is a chunk of its own, without compression.

Source: MCAP file format specification, version 0: records Message, Chunk, Message Index and Chunk Index.
"""

import struct
from io import BytesIO

LARGE = 1 << 20  # bytes: larger messages fill a chunk of rosbags, too
_MESSAGE, _CHUNK, _MESSAGE_INDEX = 0x05, 0x06, 0x07
_PARTS = ('bio', 'chunk', 'chunks', 'compression', 'channel_stats', 'message_start_time', 'message_end_time')


def write_large_directly(storage) -> None:
    """Let the open storage of a `rosbags` writer write large messages by `write_large`."""
    write = storage.write

    def write_any(connection, time_ns: int, data: bytes | memoryview) -> None:
        if not write_large(storage, connection.id, time_ns, data):
            write(connection, time_ns, data)

    storage.write = write_any


def write_large(storage, connection_id: int, time_ns: int, data: bytes | memoryview) -> bool:
    """Write a message to the open storage of a `rosbags` writer; return False where that storage is of another kind.

    storage: McapWriter of rosbags. connection_id: `id` of the connection, which the storage knows already. time_ns:
    when the message was recorded [ns]. data: the serialised message.
    """
    if any(not hasattr(storage, name) for name in _PARTS) or storage.compression or len(data) < LARGE:
        return False
    if storage.chunk.bio.tell():  # schemas and channels come before the messages that need them
        storage.close_chunk()
    out = storage.bio
    message = struct.pack('<BQHIQQ', _MESSAGE, 22 + len(data), connection_id, 0, time_ns, time_ns)
    size = len(message) + len(data)
    # No checksum, and an empty name of the compression.
    head = struct.pack('<BQQQQIIQ', _CHUNK, 40 + size, time_ns, time_ns, size, 0, 0, size)
    start = out.tell()
    out.write(head + message)
    out.write(data)
    index = out.tell()
    out.write(struct.pack('<BQHIQQ', _MESSAGE_INDEX, 22, connection_id, 16, time_ns, 0))
    entry = struct.pack('<QQQQIHQQIQQ', time_ns, time_ns, start, index - start, 10, connection_id, index,
                        out.tell() - index, 0, size, size)  # fmt: skip
    summary = BytesIO()
    summary.write(entry)
    storage.chunks.append(summary)
    storage.channel_stats[connection_id] += 1
    storage.message_start_time = min(storage.message_start_time, time_ns)
    storage.message_end_time = max(storage.message_end_time, time_ns)
    return True
