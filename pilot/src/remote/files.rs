//! Files on their way: host inputs to the pod, logs and outputs back.
//!
//! Whoever receives believes nothing of a path: it is relative, its parts are plain names, and no link on the way is followed,
//! because none was made by anyone else.
//!
//! **Must not know:** what the files are for.

use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{DATA_BYTES, FrameError, write, write_data};
use super::{Piece, PieceKind};

/// What is below `root`, named as below `name`, in an order in which folders come before what is in them.
pub(crate) fn pieces(root: &Path, name: &str) -> io::Result<Vec<(PathBuf, Piece)>> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_path_buf(), name.to_owned())];
    while let Some((path, name)) = open.pop() {
        // The input itself may be a link, as for `pilot run` on this machine; links in a folder stay links.
        let meta = if path == root { std::fs::metadata(&path)? } else { std::fs::symlink_metadata(&path)? };
        let kind = if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                let Ok(child) = entry.file_name().into_string() else {
                    return Err(io::Error::other(format!("{} is not UTF-8", entry.path().display())));
                };
                open.push((entry.path(), format!("{name}/{child}")));
            }
            PieceKind::Folder
        } else if meta.is_symlink() {
            let target = std::fs::read_link(&path)?;
            PieceKind::Link { target: target.to_string_lossy().into_owned() }
        } else if meta.is_file() {
            PieceKind::File { mode: meta.mode() & 0o777, bytes: meta.len() }
        } else {
            return Err(io::Error::other(format!("{} is neither a file nor a folder", path.display())));
        };
        found.push((path, Piece { path: name, kind }));
    }
    Ok(found)
}

/// Sends a piece as the message that `message` makes of it, and its data if it is a file.
pub(crate) async fn send<M: serde::Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    source: &Path,
    piece: Piece,
    message: impl FnOnce(Piece) -> M,
) -> Result<(), FrameError> {
    let bytes = match &piece.kind {
        PieceKind::File { bytes, .. } => Some(*bytes),
        PieceKind::Folder | PieceKind::Link { .. } => None,
    };
    // Opened first: what can't be read must not be announced.
    let file = match bytes {
        Some(_) => Some(tokio::fs::File::open(source).await?),
        None => None,
    };
    write(stream, &message(piece)).await?;
    let (Some(mut file), Some(mut left)) = (file, bytes) else { return Ok(()) };
    let mut buffer = vec![0; DATA_BYTES];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = file.read(&mut buffer[..most]).await?;
        if read == 0 {
            return Err(
                io::Error::other(format!("{} became shorter while it was sent", source.display())).into()
            );
        }
        write_data(stream, &buffer[..read]).await?;
        left -= read as u64;
    }
    Ok(())
}

/// A file that is being received: under another name until it is whole.
#[derive(Debug)]
pub(crate) struct Receiving {
    file: tokio::fs::File,
    temporary: tempfile::TempPath,
    target: PathBuf,
    left: u64,
}

impl Receiving {
    /// Takes a piece below `root`. A file goes on with its data.
    pub(crate) async fn begin(root: &Path, piece: &Piece) -> io::Result<Option<Self>> {
        let target = root.join(plain(&piece.path)?);
        let folder = target.parent().unwrap_or(root);
        tokio::fs::create_dir_all(folder).await?;
        match &piece.kind {
            PieceKind::Folder => tokio::fs::create_dir_all(&target).await.map(|()| None),
            PieceKind::Link { target: to } => tokio::fs::symlink(to, &target).await.map(|()| None),
            PieceKind::File { mode, bytes } => {
                let temporary = tempfile::Builder::new().prefix(".latebind-").make_in(folder, |path| {
                    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
                })?;
                let (file, temporary) = temporary.into_parts();
                file.set_permissions(std::fs::Permissions::from_mode(mode & 0o777))?;
                let file = tokio::fs::File::from_std(file);
                let receiving = Self { file, temporary, target, left: *bytes };
                if *bytes == 0 { receiving.finish().await.map(|()| None) } else { Ok(Some(receiving)) }
            }
        }
    }

    /// Takes data; gives itself back while more is to come.
    pub(crate) async fn data(mut self, data: &[u8]) -> io::Result<Option<Self>> {
        self.left = self.left.checked_sub(data.len() as u64).ok_or_else(|| {
            io::Error::other(format!("more data than announced for {}", self.target.display()))
        })?;
        self.file.write_all(data).await?;
        if self.left == 0 { self.finish().await.map(|()| None) } else { Ok(Some(self)) }
    }

    async fn finish(mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.temporary.persist(&self.target).map_err(|error| error.error)
    }
}

/// A relative path of plain names.
fn plain(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && path.components().next().is_some() {
        Ok(path)
    } else {
        Err(io::Error::other(format!("{} is no path below the folder for results", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, bytes: u64) -> Piece {
        Piece { path: path.into(), kind: PieceKind::File { mode: 0o644, bytes } }
    }

    #[tokio::test]
    async fn a_folder_arrives_as_it_was() {
        let (from, to) = (tempfile::tempdir().expect("from"), tempfile::tempdir().expect("to"));
        std::fs::create_dir(from.path().join("deep")).expect("mkdir");
        std::fs::write(from.path().join("deep/file"), "text").expect("write");
        std::fs::write(from.path().join("empty"), "").expect("write");
        std::os::unix::fs::symlink("deep/file", from.path().join("link")).expect("link");
        for (source, piece) in pieces(from.path(), "0").expect("pieces") {
            let begun = Receiving::begin(to.path(), &piece).await.expect("begin");
            if let Some(receiving) = begun {
                let data = std::fs::read(source).expect("read");
                assert!(receiving.data(&data).await.expect("data").is_none());
            }
        }
        assert_eq!(std::fs::read_to_string(to.path().join("0/link")).expect("read"), "text");
        assert_eq!(std::fs::read(to.path().join("0/empty")).expect("read"), b"");
    }

    #[tokio::test]
    async fn nothing_is_written_outside_the_folder_and_half_a_file_has_no_name() {
        let to = tempfile::tempdir().expect("to");
        for path in ["../x", "/etc/x", "a/../../x", "", "."] {
            assert!(Receiving::begin(to.path(), &file(path, 0)).await.is_err(), "{path:?}");
        }
        let begun = Receiving::begin(to.path(), &file("half", 2)).await.expect("begin").expect("a file");
        drop(begun.data(b"x").await.expect("data"));
        let begun = Receiving::begin(to.path(), &file("more", 2)).await.expect("begin").expect("a file");
        assert!(begun.data(b"xyz").await.is_err());
        assert_eq!(std::fs::read_dir(to.path()).expect("list").count(), 0);
    }
}
