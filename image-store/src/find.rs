//! From a reference to an image that may be used: stored already, or a candidate for an ingest.
//!
//! # Flow, for an image in a registry
//! 1. By digest, stored, and the right to it is known: nobody is asked.
//! 2. Something is known of it: HEAD says which digest it has now, and whether one is let in.
//! 3. Otherwise its documents are fetched.
//!
//! A registry that is away stops nobody from using what is stored and rightfully theirs.

use std::time::Duration;

use crate::candidate::{self, Candidate};
use crate::digest::Digest;
use crate::grants::Right;
use crate::record::{ImageId, RefRecord};
use crate::reference::Reference;
use crate::registry::{RegistryAccess, RegistryError, Session};
use crate::repository::{Repository, Wanted};
use crate::source::SourceError;
use crate::store::Store;

/// What a reference led to.
#[derive(Debug)]
pub(crate) enum Found {
    Stored(InStore),
    Candidate(Box<Candidate>),
}

/// A stored image that may be used.
#[derive(Debug)]
pub(crate) struct InStore {
    pub(crate) image: ImageId,
    pub(crate) right: Right,
    /// What is not as it should be, in one line.
    pub(crate) note: Option<String>,
}

impl Store {
    /// Finds the image that a reference means here and now.
    pub(crate) fn find(&self, reference: &Reference, access: &RegistryAccess) -> Result<Found, SourceError> {
        match reference.repository() {
            Some(repository) => self.find_in_registry(reference, repository, access),
            None => {
                let candidate = candidate::find(reference, &self.platform, &self.options.limits)?;
                Ok(Found::Candidate(Box::new(candidate)))
            }
        }
    }

    fn find_in_registry(
        &self,
        reference: &Reference,
        repository: &Repository,
        access: &RegistryAccess,
    ) -> Result<Found, SourceError> {
        let session = Session::open(access, repository, self.options.limits.document_bytes)?;
        let mut wanted = reference.wanted();
        let known = match wanted {
            Wanted::Digest(digest) => self.known_digest(reference, digest),
            Wanted::Tag(_) => self.known_ref(reference),
        };
        if let Some(known) = known {
            let right = || self.right(&known, session.logins());
            if let (Wanted::Digest(_), Some(right)) = (&wanted, right()) {
                return Ok(Found::Stored(InStore { image: known, right, note: None }));
            }
            match session.head(&wanted) {
                Ok((Some(digest), shown)) => {
                    if let Some(image) = self.known_digest(reference, digest) {
                        self.check_layers_at(&session, reference, &image)?;
                        let right = self.grant(&image, &shown);
                        return Ok(Found::Stored(InStore { image, right, note: None }));
                    }
                    wanted = Wanted::Digest(digest);
                }
                Ok((None, _)) => {}
                Err(error) => return self.without_registry(reference, known, right(), error),
            }
        }
        let top = session.manifest(&wanted)?;
        let limits = &self.options.limits;
        let candidate = candidate::find_remote(reference, session, &top, &self.platform, limits)?;
        Ok(Found::Candidate(Box::new(candidate)))
    }

    /// A repository that has the manifest has no right to the layers by that: it must have them too, unless
    /// they were seen there before.
    fn check_layers_at(
        &self,
        session: &Session,
        reference: &Reference,
        image: &ImageId,
    ) -> Result<(), SourceError> {
        if self.known_ref(reference) == Some(*image) || self.right(image, session.logins()).is_some() {
            return Ok(());
        }
        let layers = self.record(image).map(|record| record.layers).unwrap_or_default();
        layers.iter().try_for_each(|layer| Ok(session.has_blob(&layer.digest)?))
    }

    /// What is left when the registry does not answer.
    fn without_registry(
        &self,
        reference: &Reference,
        known: ImageId,
        right: Option<Right>,
        error: RegistryError,
    ) -> Result<Found, SourceError> {
        match right {
            Some(right) if error.is_transient() => {
                let note = format!("{reference} is taken as it was fetched last ({known}): {error}");
                Ok(Found::Stored(InStore { image: known, right, note: Some(note) }))
            }
            _ => Err(error.into()),
        }
    }

    /// The stored image of a manifest's digest, or the one that an index of this digest leads to.
    fn known_digest(&self, reference: &Reference, digest: Digest) -> Option<ImageId> {
        let image = ImageId::new(digest);
        self.is_whole(&image).then_some(image).or_else(|| self.known_ref(&reference.pinned(digest)))
    }

    /// The stored image that a reference meant last.
    fn known_ref(&self, reference: &Reference) -> Option<ImageId> {
        let text = std::fs::read(self.ref_path(&Self::ref_text(reference))).ok()?;
        let record: RefRecord = serde_json::from_slice(&text).ok()?;
        self.is_whole(&record.image).then_some(record.image)
    }

    /// Whether an image is stored and its tree can be read.
    pub(crate) fn is_whole(&self, image: &ImageId) -> bool {
        self.record(image).and_then(|record| self.tree(image, &record)).is_ok()
    }
}

impl InStore {
    /// How long it may be used without asking again; none for as long as one likes.
    pub(crate) const fn lasts(&self) -> Option<Duration> {
        self.right.lasts()
    }
}
