//! A file as pieces: what is asked for, checked and recorded.
//!
//! The cut is a pure function of the header: the header with its padding, then of every tensor its start (which the fingerprint reads) and
//! the rest in steps of [`STEP`], then what lies between tensors. Anyone with the same file cuts it alike, so pieces can be named by number.

use std::ops::Range;

use ds4_gguf::{Gguf, GgufError, LayerSpan, ModelConfig, tensors};

/// Largest piece. Eight of them in flight fit into a small pod.
pub(crate) const STEP: u64 = 8 << 20;
/// Pieces that nobody wants are taken along when this few bytes part two wanted ones: a request costs more.
const GAP: u64 = 64 << 10;
/// Bytes of one request; what is lost when its connection breaks is at most one piece.
const REQUEST: u64 = 32 << 20;

/// The cut of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// In file order, without gap or overlap.
    pub(crate) all: Vec<Range<u64>>,
}

impl Pieces {
    /// Cuts a file whose header is there.
    #[must_use]
    pub fn of(gguf: &Gguf) -> Self {
        let mut starts: Vec<Range<u64>> = gguf.identity_ranges().skip(1).collect();
        let mut ends: Vec<u64> = gguf
            .tensors()
            .iter()
            .map(|tensor| tensor.offset + tensor.bytes)
            .collect();
        starts.sort_by_key(|range| range.start);
        ends.sort_unstable();
        let mut cuts = Vec::with_capacity(3 * starts.len() + 1);
        cuts.extend(
            starts
                .iter()
                .flat_map(|range| [range.start, range.end])
                .chain(ends),
        );
        cuts.extend([0, gguf.length()]);
        cuts.sort_unstable();
        cuts.dedup();
        let all = cuts.windows(2).flat_map(|pair| steps(pair[0]..pair[1])).collect();
        Self { all }
    }

    /// Bytes of the file.
    pub(crate) fn length(&self) -> u64 {
        self.all.last().map_or(0, |piece| piece.end)
    }

    /// Which pieces a stage of `span` needs: the fingerprint's, and those of its tensors. The output stage decodes, so it needs all.
    ///
    /// # Errors
    /// When the model lacks a tensor of the span.
    pub(crate) fn wanted(
        &self,
        gguf: &Gguf,
        config: &ModelConfig,
        span: LayerSpan,
    ) -> Result<Vec<bool>, GgufError> {
        if span.head {
            return Ok(vec![true; self.all.len()]);
        }
        let mut wanted = vec![false; self.all.len()];
        let tensors = tensors::check(gguf, config, span)?;
        let own = tensors
            .iter()
            .map(|tensor| tensor.offset..tensor.offset + tensor.bytes);
        for range in gguf.identity_ranges().chain(own) {
            let first = self.all.partition_point(|piece| piece.end <= range.start);
            let last = self.all.partition_point(|piece| piece.start < range.end);
            wanted[first..last].fill(true);
        }
        self.close_gaps(&mut wanted);
        Ok(wanted)
    }

    fn close_gaps(&self, wanted: &mut [bool]) {
        let places: Vec<usize> = (0..wanted.len()).filter(|i| wanted[*i]).collect();
        for pair in places.windows(2) {
            if self.all[pair[1]].start - self.all[pair[0]].end <= GAP {
                wanted[pair[0]..pair[1]].fill(true);
            }
        }
    }

    /// Bytes of the pieces that `which` names.
    pub(crate) fn bytes(&self, which: &[bool]) -> u64 {
        self.all
            .iter()
            .zip(which)
            .filter(|(_, is)| **is)
            .map(|(piece, _)| piece.end - piece.start)
            .sum()
    }

    /// The missing pieces as requests: runs of neighbours.
    pub(crate) fn requests(&self, missing: &[bool]) -> Vec<Range<usize>> {
        let mut requests: Vec<Range<usize>> = Vec::new();
        for i in (0..missing.len()).filter(|i| missing[*i]) {
            match requests.last_mut() {
                Some(last) if last.end == i && self.all[i].end - self.all[last.start].start <= REQUEST => {
                    last.end = i + 1
                }
                _ => requests.push(i..i + 1),
            }
        }
        requests
    }
}

fn steps(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    (range.start..end)
        .step_by(usize::try_from(STEP).unwrap_or(usize::MAX))
        .map(move |start| start..end.min(start + STEP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_synth::{Dims, Preset};

    fn micro(folder: &tempfile::TempDir) -> (Gguf, ModelConfig) {
        let path = folder.path().join("micro.gguf");
        ds4_synth::write(&path, &Dims::preset(Preset::Micro), &mut |_, _| {}).expect("written");
        let gguf = Gguf::open(&path).expect("a model");
        let config = ModelConfig::from_gguf(&gguf).expect("a config");
        (gguf, config)
    }

    #[test]
    fn pieces_tile_the_file_and_a_span_wants_its_tensors_and_every_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let (gguf, config) = micro(&folder);
        let pieces = Pieces::of(&gguf);
        assert_eq!((pieces.all[0].start, pieces.length()), (0, gguf.length()));
        assert!(pieces.all.windows(2).all(|pair| pair[0].end == pair[1].start));
        let span = LayerSpan {
            first: 1,
            last: 1,
            head: false,
        };
        let wanted = pieces.wanted(&gguf, &config, span).expect("a span of the model");
        let covered = |range: &Range<u64>| {
            pieces
                .all
                .iter()
                .zip(&wanted)
                .all(|(piece, is)| *is || piece.end <= range.start || piece.start >= range.end)
        };
        let own = tensors::check(&gguf, &config, span).expect("tensors");
        assert!(
            own.iter()
                .all(|tensor| covered(&(tensor.offset..tensor.offset + tensor.bytes)))
        );
        assert!(gguf.identity_ranges().all(|range| covered(&range)));
        let taken = pieces.bytes(&wanted);
        assert!(
            taken * 10 < gguf.length() * 9,
            "one layer of three takes {taken} of {}",
            gguf.length()
        );
        let whole = pieces
            .wanted(
                &gguf,
                &config,
                LayerSpan {
                    first: 2,
                    last: 2,
                    head: true,
                },
            )
            .expect("the output stage");
        assert_eq!(pieces.bytes(&whole), gguf.length());
    }

    #[test]
    fn requests_are_runs_of_missing_neighbours() {
        let pieces = Pieces {
            all: vec![0..10, 10..20, 20..30, 30..30 + REQUEST],
        };
        assert_eq!(pieces.requests(&[true, true, false, true]), [0..2, 3..4]);
        assert_eq!(pieces.requests(&[true; 4]), [0..3, 3..4]);
        assert!(pieces.requests(&[false; 4]).is_empty());
    }
}
