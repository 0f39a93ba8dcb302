//! One upload in parts, from its beginning to its name or its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{Attributes, PutMultipartOptions, PutPayload};

use super::Buckets;
use crate::blocking::blocking;
use crate::digest::Hashing;
use crate::tier::Planned;
use crate::{ObjectError, ObjectUrl, Source};

/// S3's bound on the parts of an object.
const PARTS_MAX: u64 = 10_000;
/// S3's bound on an object: 5 TiB.
const BYTES_MAX: u64 = 5 << 40;

/// How long parts that are on their way are waited for when the upload is given up, so that none arrives later.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Between attempts to give an upload up: S3 may take a part that was on its way for one of an upload that it forgot.
const FORGET_AGAIN: Duration = Duration::from_millis(200);
const FORGET_TRIES: u32 = 5;

type Sent = Result<(usize, PartId), object_store::Error>;
type UnderWay = FuturesUnordered<BoxFuture<'static, Sent>>;

/// An upload that the server knows and that is not an object yet. It is given up when this is dropped.
pub(super) struct Upload<'a> {
    url: &'a ObjectUrl,
    upload: Begun,
    under_way: UnderWay,
    open: bool,
}

/// What names an upload.
#[derive(Clone)]
struct Begun {
    buckets: Arc<Buckets>,
    store: Arc<AmazonS3>,
    key: Key,
    id: String,
}

impl<'a> Upload<'a> {
    pub(super) async fn begin(
        buckets: &Arc<Buckets>,
        url: &'a ObjectUrl,
        store: &Arc<AmazonS3>,
        key: &Key,
        attributes: Attributes,
    ) -> Result<Self, ObjectError> {
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let begun = store.create_multipart_opts(key, options).await;
        let id = begun.map_err(|error| buckets.meaning(url, &error))?;
        let upload = Begun { buckets: Arc::clone(buckets), store: Arc::clone(store), key: key.clone(), id };
        Ok(Self { url, upload, under_way: UnderWay::new(), open: true })
    }

    /// Sends all parts, then names the object.
    pub(super) async fn run(
        mut self,
        source: &Source,
        plan: &Planned,
    ) -> Result<Option<String>, ObjectError> {
        let ended = match self.send(source, plan).await {
            Ok(parts) => {
                let Begun { buckets, store, key, id } = &self.upload;
                let completed = store.complete_multipart(key, id, parts).await;
                completed.map_err(|error| forgotten(buckets.meaning(self.url, &error)))
            }
            Err(error) => Err(error),
        };
        if ended.is_err() {
            self.upload.clone().give_up(std::mem::take(&mut self.under_way)).await;
        }
        self.open = false;
        ended.map(|answer| answer.e_tag)
    }

    /// Reads in order, to hash; sends some parts at once.
    async fn send(&mut self, source: &Source, plan: &Planned) -> Result<Vec<PartId>, ObjectError> {
        let limits = self.upload.buckets.settings.limits;
        if plan.bytes > BYTES_MAX {
            let reason = format!("it has {} bytes, S3 takes at most {BYTES_MAX}", plan.bytes);
            return Err(ObjectError::TooMuch { url: self.url.clone(), reason });
        }
        let part_bytes = part_bytes(plan.bytes, limits.part_bytes);
        let mut sent: Vec<Option<PartId>> = Vec::new();
        let mut hashing = Hashing::default();
        let mut offset = 0;
        while offset < plan.bytes {
            if self.under_way.len() == limits.parts_at_once {
                self.keep(&mut sent).await?;
            }
            let length = (plan.bytes - offset).min(part_bytes);
            let part: Bytes;
            (part, hashing) = read(source, offset, length, hashing)
                .await
                .map_err(|error| plan.unreadable(self.url, &error))?;
            let (upload, index) = (self.upload.clone(), sent.len());
            sent.push(None);
            self.under_way.push(Box::pin(async move {
                let part = PutPayload::from_bytes(part);
                Ok((index, upload.store.put_part(&upload.key, &upload.id, index, part).await?))
            }));
            offset += length;
        }
        plan.check(self.url, hashing.finish())?;
        while !self.under_way.is_empty() {
            self.keep(&mut sent).await?;
        }
        Ok(sent.into_iter().flatten().collect())
    }

    /// Waits for a part to arrive.
    async fn keep(&mut self, sent: &mut [Option<PartId>]) -> Result<(), ObjectError> {
        let Some(arrived) = self.under_way.next().await else { return Ok(()) };
        let meaning = |error| forgotten(self.upload.buckets.meaning(self.url, &error));
        let (index, part) = arrived.map_err(meaning)?;
        if let Some(place) = sent.get_mut(index) {
            *place = Some(part);
        }
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.open {
            let (upload, under_way) = (self.upload.clone(), std::mem::take(&mut self.under_way));
            self.upload.buckets.end_later(upload.give_up(under_way));
        }
    }
}

impl Begun {
    async fn give_up(self, mut under_way: UnderWay) {
        let Self { buckets, store, key, id } = &self;
        let limit = buckets.settings.limits.request;
        let arrived = async { while under_way.next().await.is_some() {} };
        let _ = tokio::time::timeout(ARRIVAL.min(limit), arrived).await;
        drop(under_way);
        for _ in 0..FORGET_TRIES {
            match tokio::time::timeout(limit, store.abort_multipart(key, id)).await {
                Ok(Err(object_store::Error::NotFound { .. })) => return,
                Ok(Ok(())) => {}
                _ => break,
            }
            tokio::time::sleep(FORGET_AGAIN).await;
        }
        tracing::warn!(%key, "an upload may not be given up: its parts stay until the bucket's rules remove them");
    }
}

/// In an upload "not found" means the upload, not the object.
fn forgotten(error: ObjectError) -> ObjectError {
    match error {
        ObjectError::NotFound(url) => {
            ObjectError::Server { url, reason: "the server has forgotten the upload".to_owned() }
        }
        other => other,
    }
}

async fn read(
    source: &Source,
    offset: u64,
    length: u64,
    hashing: Hashing,
) -> std::io::Result<(Bytes, Hashing)> {
    let (source, length) = (source.clone(), usize::try_from(length).unwrap_or(usize::MAX));
    let mut hashing = hashing;
    blocking(move |_| {
        let part = source.piece(offset, length)?;
        hashing.update(&part);
        Ok((part, hashing))
    })
    .await
}

/// The usual size, or as many whole MiB as it takes to stay within S3's number of parts.
fn part_bytes(bytes: u64, usual: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    usual.max(bytes.div_ceil(PARTS_MAX).next_multiple_of(MIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_object_has_more_parts_than_s3_takes() {
        assert_eq!(part_bytes(9 << 20, 8 << 20), 8 << 20);
        for bytes in [80 << 30, 100 << 30, BYTES_MAX] {
            assert!(bytes.div_ceil(part_bytes(bytes, 8 << 20)) <= PARTS_MAX);
        }
        assert!(part_bytes(BYTES_MAX, 8 << 20) < 5 << 30);
    }
}
