//! Fetches the ranges of one object, some at once, each from where it broke off. Knows nothing of digests.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore};

use super::{Buckets, Mode, parse};
use crate::blocking::{PIECE_BYTES, write_at};
use crate::tier::Head;
use crate::{ObjectError, ObjectUrl};

/// What all ranges of one fetch have in common.
struct Ranges<'a> {
    buckets: &'a Buckets,
    url: &'a ObjectUrl,
    store: Arc<AmazonS3>,
    key: Key,
    known: &'a Head,
    file: &'a Arc<File>,
    name: &'a Path,
}

impl Buckets {
    /// Writes the version of the object that `known` tells of to its place in `file`.
    pub(crate) async fn fetch(
        &self,
        url: &ObjectUrl,
        bucket: &str,
        key: &str,
        known: &Head,
        file: &Arc<File>,
        name: &Path,
    ) -> Result<(), ObjectError> {
        let store = self.bucket(url, bucket, Mode::Once)?;
        let ranges = Ranges { buckets: self, url, store, key: parse(url, key)?, known, file, name };
        let limits = &self.settings.limits;
        let count = known.bytes.div_ceil(limits.part_bytes);
        let each = (0..count).map(|index| {
            let begin = index * limits.part_bytes;
            ranges.range(begin..(begin + limits.part_bytes).min(known.bytes))
        });
        stream::iter(each).buffer_unordered(limits.parts_at_once).try_collect().await
    }
}

impl Ranges<'_> {
    /// One range, in as many requests as it takes.
    async fn range(&self, range: Range<u64>) -> Result<(), ObjectError> {
        let limits = &self.buckets.settings.limits;
        let (mut at, mut fruitless, mut wait) = (range.start, 0, limits.first_wait);
        while at < range.end {
            let before = at;
            let fault = match self.read(&mut at, range.end).await {
                Ok(()) if at == range.end => return Ok(()),
                Ok(()) => {
                    let reason = format!("the answer ended at byte {at} instead of {}", range.end);
                    ObjectError::Server { url: self.url.clone(), reason }
                }
                Err(fault @ (ObjectError::Server { .. } | ObjectError::Timeout { .. })) => fault,
                Err(other) => return Err(other),
            };
            if at > before {
                (fruitless, wait) = (0, limits.first_wait);
            } else {
                fruitless += 1;
            }
            if fruitless > limits.retries {
                return Err(fault);
            }
            tracing::debug!(url = %self.url, at, %fault, "going on after a fault");
            // Half of it by chance, so that those who were cut off together don't come back together.
            tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            wait = (wait * 2).min(limits.longest_wait);
        }
        Ok(())
    }

    /// One request; `at` says what has been written, also after a fault.
    async fn read(&self, at: &mut u64, end: u64) -> Result<(), ObjectError> {
        let changed = || ObjectError::Changed(self.url.clone());
        let meaning = |error| match self.buckets.meaning(self.url, &error) {
            ObjectError::Exists(_) | ObjectError::NotFound(_) => changed(),
            other => other,
        };
        let options = GetOptions {
            if_match: self.known.etag.clone(),
            range: Some(GetRange::Bounded(*at..end)),
            ..GetOptions::default()
        };
        let answer = self.store.get_opts(&self.key, options).await.map_err(meaning)?;
        // A server may not know `If-Match`.
        if answer.meta.size != self.known.bytes
            || (self.known.etag.is_some() && answer.meta.e_tag != self.known.etag)
        {
            return Err(changed());
        }
        let mut pieces = answer.into_stream();
        let mut buffer = Vec::with_capacity(PIECE_BYTES);
        loop {
            let piece = pieces.next().await;
            let ended = !matches!(piece, Some(Ok(_)));
            if let Some(Ok(piece)) = &piece {
                let room = end - *at - buffer.len() as u64;
                if piece.len() as u64 > room {
                    let reason = "the server sent more than was asked for".to_owned();
                    return Err(ObjectError::Refused { url: self.url.clone(), reason });
                }
                buffer.extend_from_slice(piece);
            }
            if buffer.len() >= PIECE_BYTES || (ended && !buffer.is_empty()) {
                let length = buffer.len() as u64;
                let full = std::mem::replace(&mut buffer, Vec::with_capacity(PIECE_BYTES));
                write_at(self.file, self.name, *at, full).await?;
                *at += length;
            }
            match piece {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(meaning(error)),
                None => return Ok(()),
            }
        }
    }
}
