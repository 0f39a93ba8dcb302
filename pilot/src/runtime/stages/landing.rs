//! What a payload left becomes stages, is saved, or goes.
//!
//! **Must not know:** who reads it and how.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use objects::Source as Content;
use pilot_core::{Fault, FaultClass};
use rustix::fs::{AtFlags, FileType, statat};
use stage::broker::Ended;
use stage::server::{Content as Opened, Made, Stopped};
use stage::{
    CommitError, CommitReason, FolderError, FolderLimits, MemoryStage, OutputFile, StageName, StageUri,
    commit_folder,
};

use super::folders::{drop_file, open_folder};
use super::opening::OpenOutput;
use super::saving::{copy_folder_to, copy_to, is_program};
use super::{Lies, Stages, reading, stopped};
use crate::fault::chain;
use crate::payload::{Output, Payload, Save, StageClass};

/// What is copied to where the user wants it.
enum Saving {
    File(File),
    Value(Vec<u8>),
}

/// What a payload left, out of its reach.
enum Landed {
    File { folder: PathBuf, bytes: u64 },
    Folder { folder: PathBuf, bytes: u64 },
    Memory(MemoryStage),
    Value(Vec<u8>),
    ByClient { bytes: u64 },
}

impl Stages {
    /// Commits a payload's outputs, all of them or none; gives their bytes. `made` says what its clients committed, in the
    /// session that has ended; `out` is where it wrote by path.
    pub(in crate::runtime) fn commit(
        &self,
        payload: &Payload,
        outputs: Vec<OpenOutput>,
        made: &Ended,
        (out, stages): (&Path, &Path),
    ) -> Result<u64, Fault> {
        let committed = self.commit_each(payload, outputs, made, (out, stages));
        if committed.is_err() {
            self.discard(payload);
        }
        committed
    }

    fn commit_each(
        &self,
        payload: &Payload,
        outputs: Vec<OpenOutput>,
        made: &Ended,
        (out, stages): (&Path, &Path),
    ) -> Result<u64, Fault> {
        let (from, into) = (open_folder(out)?, open_folder(stages)?);
        let mut total = 0;
        // Their folder goes with the last of them, and the others still have to come into it.
        let mut unwanted = Vec::new();
        for (output, open) in payload.outputs.iter().zip(outputs) {
            let uri = payload.stage(&output.name);
            let Some(by_path) = self.land(output, open, (&from, &into), stages) else { continue };
            let by_client = made.committed.iter().find(|(made, ..)| *made == uri).map(|(.., bytes)| *bytes);
            let landed = either(output, by_path, by_client, made.dropped)?;
            if let Some(to) = &output.save {
                self.save(&landed, &uri, to).inspect_err(|_| landed.drop_file(&output.name))?;
            }
            total += landed.bytes();
            self.counting.made(landed.bytes());
            unwanted.extend(self.keep(payload, output, landed)?);
        }
        for output in &payload.outputs {
            self.release(&payload.stage(&output.name), &payload.name);
        }
        for path in unwanted {
            drop_file(&path);
        }
        if self.noted {
            self.note(payload, stages);
        }
        self.share(payload)?;
        Ok(total)
    }

    /// Takes what a payload left by path, what lies on disk into the folder `stages`; `None` when nothing of it is kept.
    fn land(
        &self,
        output: &Output,
        open: OpenOutput,
        (from, into): (&OwnedFd, &OwnedFd),
        stages: &Path,
    ) -> Option<Result<Landed, Missed>> {
        if is_replaced(&open, from, &output.name) {
            let name = &output.name;
            let text = format!(
                "commit output \"{name}\": the payload did not write it but put something else in its place; use class file, or write through the path"
            );
            return Some(Err(Missed { written: true, text }));
        }
        let folder = || stages.to_path_buf();
        let file = |file: OutputFile| file.commit(from.as_fd(), output.max_bytes, into.as_fd(), &output.name);
        let landed = match open {
            OpenOutput::File(open) => file(open)
                .inspect(|stage| self.counting.landed(*stage))
                .map(|stage| Landed::File { folder: folder(), bytes: stage.bytes })
                .map_err(Missed::from),
            OpenOutput::Folder => {
                let limits = FolderLimits::new(output.max_bytes);
                commit_folder(from.as_fd(), &output.name, limits, into.as_fd(), &output.name)
                    .inspect(|stage| self.counting.folder(*stage))
                    .map(|stage| Landed::Folder { folder: folder(), bytes: stage.bytes })
                    .map_err(Missed::from)
            }
            OpenOutput::Memory(writer) => {
                writer.commit(output.max_bytes).map(Landed::Memory).map_err(|lost| lost.error.into())
            }
            OpenOutput::Value(open) => {
                file(open)
                    .and_then(|_| {
                        // It is the pilot's alone by now, and no larger than a value may be.
                        let path = stages.join(output.name.as_str());
                        let value = std::fs::read(&path);
                        let _ = std::fs::remove_file(&path);
                        value.map(Landed::Value).map_err(|source| CommitError {
                            output: output.name.clone(),
                            reason: CommitReason::Io { doing: "read it", source },
                        })
                    })
                    .map_err(Missed::from)
            }
            OpenOutput::Shared(_) | OpenOutput::Passing => return None,
        };
        Some(landed)
    }

    /// Copies what a payload left to where the user wants it.
    fn save(&self, landed: &Landed, uri: &StageUri, to: &Save) -> Result<(), Fault> {
        if let (Landed::Folder { folder, .. }, Save::File(path)) = (landed, to) {
            return copy_folder_to(&folder.join(uri.output.as_str()), path)
                .map_err(|error| unsaved(&uri.output, to, &error));
        }
        let content = self.content(landed, uri).map_err(|error| unsaved(&uri.output, to, &error))?;
        match (to, content) {
            (Save::Object(url), content) => {
                let content = match content {
                    Saving::File(file) => Content::from(file),
                    Saving::Value(value) => Content::from(value),
                };
                self.objects.put(content, landed.bytes(), url).map_err(|fault| {
                    let text = format!("save output \"{}\": {}", uri.output, fault.message);
                    Fault::new(fault.class, text)
                })
            }
            (Save::File(path), Saving::File(mut file)) => {
                let is_program = is_program(&file);
                copy_to(&mut file, path, is_program).map_err(|error| unsaved(&uri.output, to, &error))
            }
            (Save::File(path), Saving::Value(value)) => {
                copy_to(&mut value.as_slice(), path, false).map_err(|error| unsaved(&uri.output, to, &error))
            }
        }
    }

    fn content(&self, landed: &Landed, uri: &StageUri) -> std::io::Result<Saving> {
        Ok(match landed {
            Landed::File { folder, .. } => Saving::File(File::open(folder.join(uri.output.as_str()))?),
            Landed::Folder { .. } => return Err(std::io::ErrorKind::IsADirectory.into()),
            Landed::Memory(stage) => Saving::File(File::from(stage.reader().map_err(|error| error.source)?)),
            Landed::Value(value) => Saving::Value(value.clone()),
            Landed::ByClient { .. } => match self.broker.reader(uri, None) {
                Ok(Some(content)) => match content? {
                    Opened::Memory(fd) | Opened::File(fd) => Saving::File(File::from(fd)),
                    Opened::Value(value) => Saving::Value(value),
                },
                Ok(None) | Err(Stopped) => return Err(std::io::ErrorKind::NotFound.into()),
            },
        })
    }

    /// Makes a stage of what a payload left; gives the path of its file if nobody wants it any more.
    fn keep(&self, payload: &Payload, output: &Output, landed: Landed) -> Result<Option<PathBuf>, Fault> {
        let uri = payload.stage(&output.name);
        let mut held = self.lock();
        let (made, path) = match landed {
            Landed::Memory(stage) => (Made::Memory(stage), None),
            Landed::Value(value) => (Made::Value(value), None),
            // It is on the broker since its client committed it.
            Landed::ByClient { .. } => return Ok(None),
            Landed::File { folder, bytes } => {
                (self.made(&uri, bytes)?, Some(folder.join(output.name.as_str())))
            }
            Landed::Folder { folder, bytes } => {
                (Made::Folder { bytes }, Some(folder.join(output.name.as_str())))
            }
        };
        let kept = self.broker.insert(&uri, made, &reading(payload, output)).map_err(stopped)?;
        match (kept, path) {
            (Ok(true), Some(path)) => {
                held.insert(uri, Lies { path, was_memory: false, away: None });
                Ok(None)
            }
            (Ok(true), None) => Ok(None),
            (Ok(false), path) => Ok(path),
            (Err(error), path) => {
                if let Some(path) = path {
                    drop_file(&path);
                }
                Err(Fault::new(FaultClass::Payload, chain(&error)))
            }
        }
    }
}

/// Whether a payload has put a file or folder where a link to memory or a pipe was: then what it wrote is not what its
/// readers would get, or got.
fn is_replaced(open: &OpenOutput, out: &OwnedFd, name: &StageName) -> bool {
    match open {
        OpenOutput::File(_) | OpenOutput::Folder | OpenOutput::Value(_) => return false,
        OpenOutput::Memory(_) | OpenOutput::Shared(_) | OpenOutput::Passing => {}
    }
    statat(out, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
    })
}

/// Why nothing was taken.
struct Missed {
    /// The payload did write something.
    written: bool,
    /// In one line.
    text: String,
}

impl Missed {
    fn new(reason: &CommitReason, error: &dyn std::error::Error) -> Self {
        Self { written: !matches!(reason, CommitReason::NotProduced), text: chain(error) }
    }
}

impl From<CommitError> for Missed {
    fn from(error: CommitError) -> Self {
        Self::new(&error.reason, &error)
    }
}

impl From<FolderError> for Missed {
    fn from(error: FolderError) -> Self {
        Self::new(&error.reason, &error)
    }
}

/// An output is made in one of two ways. `dropped` outputs were created by clients that did not commit them.
fn either(
    output: &Output,
    by_path: Result<Landed, Missed>,
    by_client: Option<u64>,
    dropped: usize,
) -> Result<Landed, Fault> {
    let wrong = |text: String| Err(Fault::new(FaultClass::Payload, text));
    let name = &output.name;
    match (by_path, by_client) {
        (Ok(landed), None) => Ok(landed),
        (Ok(landed), Some(_)) => {
            landed.drop_file(name);
            wrong(format!(
                "commit output \"{name}\": it was written to /stage/out/{name} and committed by a client; make it in one way"
            ))
        }
        (Err(missed), _) if missed.written => wrong(missed.text),
        (Err(_), Some(bytes)) => Ok(Landed::ByClient { bytes }),
        (Err(missed), None) if output.class == StageClass::Memory && dropped > 0 => {
            wrong(format!("{}, and no client committed it", missed.text))
        }
        (Err(missed), None) => wrong(missed.text),
    }
}

impl Landed {
    fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } | Self::Folder { bytes, .. } | Self::ByClient { bytes } => *bytes,
            Self::Memory(stage) => stage.bytes(),
            Self::Value(value) => value.len() as u64,
        }
    }

    fn drop_file(&self, name: &StageName) {
        if let Self::File { folder, .. } | Self::Folder { folder, .. } = self {
            drop_file(&folder.join(name.as_str()));
        }
    }
}

fn unsaved(name: &StageName, to: &Save, error: &std::io::Error) -> Fault {
    let message = format!("save output \"{name}\" to {to}: {error}; choose another folder with --out");
    Fault::new(FaultClass::Payload, message)
}
