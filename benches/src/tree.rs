//! A large image of real files: part of the machine's own /usr.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image_store::layout::{Compression, ImageSpec, LayerBlob, LayoutWriter};
use tar::{Builder, Header, HeaderMode};

/// Bytes of regular files, half from each folder.
const BYTES: u64 = 500 << 20;
const FOLDERS: [&str; 2] = ["/usr/lib", "/usr/share"];

/// Writes an OCI layout with the same files twice: as one gzip layer (`one`) and as four (`four`). The program `first`
/// is the entry point.
///
/// # Errors
/// When something can't be read or written.
pub fn write_layout(layout: &Path, first: &Path) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        let mut left = BYTES / FOLDERS.len() as u64;
        collect(Path::new(folder), &mut left, &mut files)?;
    }
    let mut writer = LayoutWriter::create(layout)?;
    let spec = ImageSpec { entrypoint: vec!["/first".into()], ..ImageSpec::default() };
    for (tag, parts) in [("one", 1), ("four", 4)] {
        let mut layers = Vec::new();
        for (index, part) in cut(&files, parts).into_iter().enumerate() {
            let tar = archive(part, (index == 0).then_some(first))?;
            layers.push(LayerBlob::from_tar(&tar, Compression::Gzip)?);
        }
        writer.add_image(tag, &spec, layers)?;
    }
    Ok(())
}

/// A file, folder or link, and how many bytes it has.
type Entry = (PathBuf, u64);

/// Takes what is in `folder`, in the order of names, until `left` is used up. What can't be read is left out.
fn collect(folder: &Path, left: &mut u64, files: &mut Vec<Entry>) -> anyhow::Result<()> {
    files.push((folder.to_path_buf(), 0));
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let meta = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        if meta.is_dir() {
            collect(&path, left, files)?;
        } else if meta.is_symlink() {
            files.push((path, 0));
        } else if meta.is_file() && meta.len() <= *left && fs::File::open(&path).is_ok() {
            *left -= meta.len();
            files.push((path, meta.len()));
        }
        if *left < 4096 {
            break;
        }
    }
    Ok(())
}

/// Cuts into pieces of about the same number of bytes.
fn cut(files: &[Entry], parts: u64) -> Vec<&[Entry]> {
    let share = files.iter().map(|(_, bytes)| bytes).sum::<u64>() / parts + 1;
    let mut pieces = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (index, (_, bytes)) in files.iter().enumerate() {
        sum += bytes;
        if sum >= share {
            pieces.push(&files[start..=index]);
            (start, sum) = (index + 1, 0);
        }
    }
    pieces.push(&files[start..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn archive(files: &[Entry], first: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    tar.mode(HeaderMode::Deterministic);
    tar.follow_symlinks(false);
    if let Some(first) = first {
        let program = fs::read(first)?;
        let mut header = Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(program.len() as u64);
        tar.append_data(&mut header, "first", &program[..])?;
    }
    for (path, _) in files {
        let inside = path.strip_prefix("/")?;
        tar.append_path_with_name(path, inside).with_context(|| format!("pack {}", path.display()))?;
    }
    Ok(tar.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::{Entry, cut};

    #[test]
    fn pieces_are_of_like_size_and_lose_nothing() {
        let files: Vec<Entry> = (0..1000).map(|index| (format!("f{index}").into(), index % 7)).collect();
        for parts in [1, 4] {
            let pieces = cut(&files, parts);
            assert_eq!(pieces.len() as u64, parts);
            assert_eq!(pieces.concat(), files);
            let sizes: Vec<u64> =
                pieces.iter().map(|piece| piece.iter().map(|(_, bytes)| bytes).sum()).collect();
            assert!(sizes.iter().max() <= sizes.iter().min().map(|least| least + 50).as_ref(), "{sizes:?}");
        }
    }
}
