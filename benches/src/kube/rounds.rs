//! Starts, one after the other: everyone has a turn in each round.

use std::time::Duration;

use super::IDLE;
use super::outside::{Moments, Outside};
use super::peers::{Ctr, Objects, Shell};
use super::place::Place;
use crate::clock::span_ms;
use crate::peers::Times;
use crate::results::Section;

/// Images that take turns: each start has another one than the last.
const IMAGES: u32 = 3;
/// Jobs take part in each so many rounds.
const JOBS_EVERY: u32 = 3;
/// Before a start of somebody who has no slot.
const PAUSE: Duration = Duration::from_secs(1);

/// Measures `rounds` rounds.
pub(super) async fn measure(place: &Place, rounds: u32, section: &mut Section) -> anyhow::Result<()> {
    let images = (0..IMAGES).map(|number| place.image(number)).collect::<anyhow::Result<Vec<String>>>()?;
    let image = |number: u32| images[(number % IMAGES) as usize].as_str();
    let outside = Outside::new(place, "bound", false).await?;
    let mut shell = Shell::new(place, image(0)).await?;
    let mut objects = Objects::new(place)?;
    let ctr = Ctr::new(place, image(0)).and_then(|ctr| ctr.once().map(|_| ctr));
    if let Err(error) = &ctr {
        section.skip("ctr run", &format!("{error:#}"));
    }
    let mut epoch = 0;
    for image in &images {
        // Now the node has them.
        outside.prepare(image).await?;
        outside.once(0, &mut epoch, image).await?;
    }
    for round in 0..rounds {
        for turn in 0..5 {
            let number = round * 2;
            match (turn + round) % 5 {
                0 => {
                    tokio::time::sleep(IDLE).await;
                    ours(&outside, &mut epoch, image(number), "latebind", section).await?;
                    ours(&outside, &mut epoch, image(number + 1), "latebind, no gap", section).await?;
                }
                1 => {
                    tokio::time::sleep(IDLE).await;
                    theirs("patched shell", shell.once(image(number)).await?, section);
                    theirs("patched shell, no gap", shell.once(image(number + 1)).await?, section);
                }
                2 => {
                    tokio::time::sleep(PAUSE).await;
                    theirs("bare Pod", objects.pod(image(number)).await?, section);
                }
                3 if round % JOBS_EVERY == 0 => {
                    tokio::time::sleep(PAUSE).await;
                    theirs("Job", objects.job(image(number)).await?, section);
                }
                4 => {
                    tokio::time::sleep(PAUSE).await;
                    if let Ok(ctr) = &ctr {
                        theirs("ctr run", ctr.once()?, section);
                    }
                }
                _ => {}
            }
        }
    }
    shell.end();
    outside.end(place).await;
    Ok(())
}

async fn ours(
    outside: &Outside,
    epoch: &mut u64,
    image: &str,
    who: &str,
    section: &mut Section,
) -> anyhow::Result<()> {
    let before = outside.runtime.api_requests();
    let Moments { asked, bound, first, exited, cleaned } = outside.once(0, epoch, image).await?;
    let requests = outside.runtime.api_requests() - before;
    section.add(who, "start", span_ms(asked, first));
    section.add(who, "end known", span_ms(first, exited));
    section.add(who, "bind", span_ms(asked, bound));
    section.add(who, "launch to first instruction", span_ms(bound, first));
    section.add(who, "drain and clean", span_ms(exited, cleaned));
    section.add(who, "API requests, bind to clean [1]", f64::from(u32::try_from(requests)?));
    Ok(())
}

fn theirs(who: &str, Times { asked, first, ended }: Times, section: &mut Section) {
    section.add(who, "start", span_ms(asked, first));
    section.add(who, "end known", span_ms(first, ended));
}
