//! An image of 200 MB: fetched ahead by a pod of its own, or pulled by the bind, and what the other slot feels of it.
//!
//! **Must not know:** peers.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Context;

use super::IDLE;
use super::outside::{Moments, Outside};
use super::peers::Containerd;
use super::place::Place;
use super::watch::Watch;
use crate::clock::{now_ns, span_ms};
use crate::results::Section;

/// Of a layer that compresses badly.
const BYTES: usize = 200_000_000;
/// Images that are fetched ahead, and such that a bind pulls. Their number is their seed: the registry keeps them once,
/// however often this runs.
const FETCHED: [u32; 6] = [1, 2, 3, 4, 5, 6];
const PULLED: [u32; 2] = [7, 8];
/// Between the other slot's payloads, so that a pull sees several.
const PACE: Duration = Duration::from_secs(1);
/// After the first slot's bind, the other one's.
const LATER: Duration = Duration::from_millis(150);

/// The pod whose images are fetched ahead.
const AHEAD: &str = "ahead";

/// Measures; each large image that was fetched is bound a number of times that follows from `rounds`.
pub(super) async fn measure(place: &Place, rounds: u32, section: &mut Section) -> anyhow::Result<()> {
    let make = |number: &u32| place.large_image(*number, BYTES);
    let fetched = FETCHED.iter().map(make).collect::<anyhow::Result<Vec<String>>>()?;
    let pulled = PULLED.iter().map(make).collect::<anyhow::Result<Vec<String>>>()?;
    let small = [place.image(0)?, place.image(1)?];
    let containerd = Containerd::new(place)?;
    containerd.forget(&fetched);
    containerd.forget(&pulled);
    let events = Watch::new(&place.namespace, "events", "{.involvedObject.name} {.reason}")?;
    let outside = Outside::new(place, AHEAD, true).await?;
    let mut slots = Slots { outside: &outside, small: &small, epoch: 0 };
    slots.warm_up().await?;
    for image in &fetched {
        slots.fetch(image, &events, section).await.context("fetch")?;
        slots.bind(image, rounds.div_ceil(10), section).await?;
    }
    outside.end(place).await;
    let outside = Outside::new(place, "lane", false).await?;
    let mut slots = Slots { outside: &outside, small: &small, epoch: 0 };
    slots.warm_up().await?;
    for image in &pulled {
        slots.pull(image, section).await.context("pull")?;
    }
    outside.end(place).await;
    containerd.forget(&fetched);
    containerd.forget(&pulled);
    Ok(())
}

/// Slot 0 has the large images, slot 1 small ones.
struct Slots<'a> {
    outside: &'a Outside,
    small: &'a [String; 2],
    epoch: u64,
}

impl Slots<'_> {
    /// The node has the small images from here on.
    async fn warm_up(&mut self) -> anyhow::Result<()> {
        for image in self.small {
            self.outside.prepare(image).await?;
            for slot in [0, 1] {
                self.outside.once(slot, &mut self.epoch, image).await?;
            }
        }
        Ok(())
    }

    /// Binds slot 1 now and then, before and while an image is fetched.
    async fn fetch(&mut self, image: &str, events: &Watch, section: &mut Section) -> anyhow::Result<()> {
        for number in 0..3 {
            let took = self.other(number).await?;
            section.add("other slot", "start, before", start(took));
        }
        tokio::time::sleep(PACE).await;
        let (began, ended) = (now_ns(), Cell::new(None));
        let fetch = async {
            let fetched = self.outside.prepare(image).await;
            ended.set(Some(now_ns()));
            fetched
        };
        let mut epoch = self.epoch;
        let binds = async {
            let mut took = Vec::new();
            while ended.get().is_none() {
                let image = &self.small[took.len() % 2];
                took.push(self.outside.once(1, &mut epoch, image).await?);
                tokio::time::sleep(PACE).await;
            }
            anyhow::Ok(took)
        };
        let (fetched, took) = tokio::join!(fetch, binds);
        fetched?;
        self.epoch = epoch;
        let ended = ended.get().context("it has ended")?;
        // The pod that fetches is named after the image.
        let digest = image.rsplit(':').next().context("its digest")?;
        let name = format!("{AHEAD}-pull-{}", &digest[..12]);
        let (from, to) = (events.until(&name, "Pulling")?, events.until(&name, "Pulled")?);
        section.add("200 MB", "fetched ahead in [s]", span_ms(began, ended) / 1e3);
        section.add("200 MB", "of which the node's pull [s]", span_ms(from, to) / 1e3);
        for took in took? {
            if took.asked < to && took.first > from {
                section.add("other slot", "start, while 200 MB are fetched ahead", start(took));
            }
        }
        Ok(())
    }

    async fn other(&mut self, number: usize) -> anyhow::Result<Moments> {
        tokio::time::sleep(PACE).await;
        self.outside.once(1, &mut self.epoch, &self.small[number % 2]).await
    }

    /// Binds the image that is there by now, and a small one, in turn.
    async fn bind(&mut self, image: &str, times: u32, section: &mut Section) -> anyhow::Result<()> {
        for _ in 0..times {
            for (who, image) in [("200 MB", image), ("small image", self.small[0].as_str())] {
                tokio::time::sleep(IDLE).await;
                let took = self.outside.once(0, &mut self.epoch, image).await?;
                section.add(who, "start, fetched ahead", start(took));
            }
        }
        Ok(())
    }

    /// Lets the bind pull, and binds the other slot meanwhile.
    async fn pull(&mut self, image: &str, section: &mut Section) -> anyhow::Result<()> {
        self.outside.prepare(image).await?;
        tokio::time::sleep(IDLE).await;
        let (mut first, mut second) = (self.epoch, self.epoch + 1);
        let large = self.outside.once(0, &mut first, image);
        let small = async {
            tokio::time::sleep(LATER).await;
            self.outside.once(1, &mut second, &self.small[0]).await
        };
        let (large, small) = tokio::join!(large, small);
        self.epoch = second;
        section.add("200 MB", "start, pulled by the bind [s]", start(large?) / 1e3);
        section.add("other slot", "start, while a bind pulls 200 MB [s]", start(small?) / 1e3);
        Ok(())
    }
}

fn start(Moments { asked, first, .. }: Moments) -> f64 {
    span_ms(asked, first)
}
