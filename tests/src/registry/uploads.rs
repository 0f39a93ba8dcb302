//! The uploads of the misbehaving registry, as the distribution specification has them: opened, brought piece by piece,
//! closed with a digest.

use std::collections::{HashMap, HashSet};

use image_store::Digest;

use super::http::{Reply, Request};

/// How a registry says where an upload goes on.
#[derive(Debug, Clone, Default)]
pub enum Locations {
    /// By a path.
    #[default]
    Relative,
    /// By its whole address.
    Absolute,
    /// By an address that begins so.
    At(String),
    /// Not once the upload is open.
    AtFirst,
    /// Not at all.
    Never,
}

#[derive(Debug, Default)]
pub(super) struct Uploads {
    pub(super) locations: Locations,
    open: HashMap<String, Vec<u8>>,
    closed: HashSet<String>,
}

impl Uploads {
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// An upload that another registry opened is taken too.
    pub(super) fn reply(
        &mut self,
        request: &Request,
        url: &str,
        blobs: &mut HashMap<String, Vec<u8>>,
    ) -> Reply {
        let (path, query) = request.seen.path.split_once('?').unwrap_or((&request.seen.path, ""));
        let method = request.seen.method.as_str();
        if method == "POST" {
            let id = format!("{path}upload-{}", self.open.len() + self.closed.len());
            self.open.insert(id.clone(), Vec::new());
            return self.told(Reply::new(202, Vec::new()), &id, url, true);
        }
        if self.closed.contains(path) || !query.contains("_state=a%2Fb") {
            return Reply::new(404, b"{\"errors\":[{\"code\":\"BLOB_UPLOAD_UNKNOWN\"}]}".to_vec());
        }
        let bytes = self.open.entry(path.to_owned()).or_default();
        let held = format!("0-{}", bytes.len().saturating_sub(1));
        let first = request.seen.content_range.as_deref().and_then(|range| range.split_once('-'));
        match method {
            "PATCH" if first.is_none_or(|(first, _)| first.parse() != Ok(bytes.len())) => {
                Reply::new(416, Vec::new()).with("Range", &held)
            }
            "PATCH" => {
                bytes.extend_from_slice(&request.body);
                let held = format!("0-{}", bytes.len().saturating_sub(1));
                self.told(Reply::new(202, Vec::new()).with("Range", &held), path, url, false)
            }
            "GET" => self.told(Reply::new(204, Vec::new()).with("Range", &held), path, url, false),
            _ => {
                self.closed.insert(path.to_owned());
                let bytes = self.open.remove(path).unwrap_or_default();
                if method == "DELETE" {
                    return Reply::new(204, Vec::new());
                }
                let digest = Digest::of(&bytes).to_string();
                if !query.replace("%3A", ":").contains(&format!("digest={digest}")) {
                    return Reply::new(400, b"{\"errors\":[{\"code\":\"DIGEST_INVALID\"}]}".to_vec());
                }
                blobs.insert(digest, bytes);
                Reply::new(201, Vec::new())
            }
        }
    }

    fn told(&self, reply: Reply, id: &str, url: &str, first: bool) -> Reply {
        let start = match &self.locations {
            Locations::Relative => "",
            Locations::AtFirst if first => "",
            Locations::Absolute => url,
            Locations::At(other) => other,
            Locations::AtFirst | Locations::Never => return reply,
        };
        reply.with("Location", &format!("{start}{id}?_state=a%2Fb"))
    }
}
