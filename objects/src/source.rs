//! What is put: a file or bytes, read piece by piece. Knows no place where it goes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

/// The content of an object that is put.
#[derive(Debug, Clone)]
pub enum Source {
    /// A regular file or sealed memory, read from its beginning; its position does not matter. It must not change
    /// meanwhile: what changes is noticed and refused.
    File(Arc<File>),
    /// Bytes of this process.
    Bytes(Bytes),
}

impl Source {
    /// How many bytes there are.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => {
                let metadata = file.metadata()?;
                if metadata.is_file() { Ok(metadata.len()) } else { Err(io::ErrorKind::InvalidInput.into()) }
            }
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Exactly `length` bytes from `offset` on. Blocks.
    pub(crate) fn piece(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        match self {
            Self::File(file) => {
                let mut buffer = vec![0; length];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(buffer.into())
            }
            Self::Bytes(bytes) => {
                let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                match begin.checked_add(length).filter(|end| *end <= bytes.len()) {
                    Some(end) => Ok(bytes.slice(begin..end)),
                    None => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
    }
}

impl From<File> for Source {
    fn from(file: File) -> Self {
        Self::File(Arc::new(file))
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}
