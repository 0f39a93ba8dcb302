//! Bytes to messages and back, with nothing left over and every limit checked.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::FRAME_BYTES_MAX;
use crate::limits::{Check, Violation};

/// Why a message could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The message breaks one of its own limits; sending it would only get us cut off.
    #[error("encode a message that breaks its limits")]
    Limit(#[from] Violation),
    /// The encoder failed; only possible for types that postcard cannot represent.
    #[error("encode message")]
    Format(#[from] postcard::Error),
    /// Longer than one frame.
    #[error("encode a message of {bytes} bytes: a frame holds {FRAME_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// Why received bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the encoding of this message type.
    #[error("decode message of {bytes} bytes")]
    Format {
        /// Length of the input.
        bytes: usize,
        /// What the decoder met.
        #[source]
        source: postcard::Error,
    },
    /// A valid message followed by something else.
    #[error("decode message: {bytes} bytes left over")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Well-formed, but a count, length or name is outside its limits.
    #[error("decode message that breaks its limits")]
    Limit(#[from] Violation),
}

/// Encodes a message for one frame.
///
/// # Errors
/// When the message breaks its limits or is longer than [`FRAME_BYTES_MAX`].
pub fn encode<T: Serialize + Check>(message: &T) -> Result<Vec<u8>, EncodeError> {
    message.check()?;
    let bytes = postcard::to_allocvec(message)?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(EncodeError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes one message and checks its limits.
///
/// # Errors
/// When the bytes are not exactly one valid message.
pub fn decode<T: DeserializeOwned + Check>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (message, rest): (T, &[u8]) = postcard::take_from_bytes(bytes)
        .map_err(|source| DecodeError::Format { bytes: bytes.len(), source })?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing { bytes: rest.len() });
    }
    message.check()?;
    Ok(message)
}
