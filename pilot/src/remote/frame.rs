//! Frames on a byte stream: a length, a kind, a body. Messages are JSON, data is raw.
//!
//! ```text
//!   | length of the rest, u32 little-endian | kind, u8 | body |
//! ```
//! **Must not know:** what messages mean.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest frame in bytes. Ten thousand payloads of a few hundred bytes each are the longest message.
const FRAME_BYTES_MAX: u32 = 64 << 20;
/// Data is cut into pieces of this size: large enough to be cheap, small enough for two buffers to be nothing.
pub(crate) const DATA_BYTES: usize = 256 << 10;
const MESSAGE: u8 = 0;
const DATA: u8 = 1;

/// Why a stream is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("talk to the other side")]
    Io(#[from] std::io::Error),
    #[error("understand the other side: a frame of {0} bytes")]
    Length(u32),
    #[error("understand the other side: a frame of kind {0}")]
    Kind(u8),
    #[error("understand the other side")]
    Message(#[from] serde_json::Error),
}

/// What came.
#[derive(Debug)]
pub(crate) enum Frame<M> {
    Message(M),
    Data(Vec<u8>),
}

/// Reads one frame; `None` at the stream's end between two. Not to be dropped half-way: what was read is gone then.
pub(crate) async fn read<M: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Frame<M>>, FrameError> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = u32::from_le_bytes(head);
    if length == 0 || length > FRAME_BYTES_MAX {
        return Err(FrameError::Length(length));
    }
    let kind = stream.read_u8().await?;
    // Grows with what comes, not with what is announced.
    let mut body = Vec::new();
    let wanted = u64::from(length - 1);
    if stream.take(wanted).read_to_end(&mut body).await? as u64 != wanted {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    match kind {
        MESSAGE => Ok(Some(Frame::Message(serde_json::from_slice(&body)?))),
        DATA => Ok(Some(Frame::Data(body))),
        other => Err(FrameError::Kind(other)),
    }
}

/// Writes a message.
pub(crate) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<(), FrameError> {
    put(stream, MESSAGE, &serde_json::to_vec(message)?).await
}

/// Writes a piece of data.
pub(crate) async fn write_data(
    stream: &mut (impl AsyncWrite + Unpin),
    data: &[u8],
) -> Result<(), FrameError> {
    put(stream, DATA, data).await
}

async fn put(stream: &mut (impl AsyncWrite + Unpin), kind: u8, body: &[u8]) -> Result<(), FrameError> {
    let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::Length(length));
    }
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_u8(kind).await?;
    stream.write_all(body).await?;
    Ok(stream.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::ToPod;

    async fn both_ways(bytes: &[u8]) -> Result<Option<Frame<ToPod>>, FrameError> {
        read(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_a_cut_stream_is_an_error() {
        let mut stream = Vec::new();
        write(&mut stream, &ToPod::Stop { signal: 2, kill: true }).await.expect("write");
        let whole = both_ways(&stream).await.expect("read");
        assert!(matches!(whole, Some(Frame::Message(ToPod::Stop { signal: 2, kill: true }))));
        assert!(both_ways(&[]).await.expect("the end").is_none());
        for cut in 4..stream.len() {
            assert!(both_ways(&stream[..cut]).await.is_err(), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn no_bytes_at_all_make_it_panic_or_grow() {
        for bytes in [[0; 8], [255; 8], [3, 0, 0, 0, 9, 0, 0, 0], [4, 0, 0, 0, 0, b'{', b'x', 0]] {
            assert!(both_ways(&bytes).await.is_err(), "{bytes:?}");
        }
    }
}
