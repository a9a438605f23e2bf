//! The header of a GGUF file: metadata and the index of tensors.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ds4_kernels::Format;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::cursor::Cursor;
use crate::{GgufError, Metadata};

const VERSION: u32 = 3;
/// Tensor data starts at the next multiple of this unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// A tensor record takes at least: name length, dimension count, type, offset.
const SMALLEST_TENSOR: u64 = 8 + 4 + 4 + 8;
/// A metadata pair takes at least: key length, type, one byte.
const SMALLEST_PAIR: u64 = 8 + 4 + 1;
/// GGUF allows four dimensions.
const MOST_DIMENSIONS: u32 = 4;
/// How much of every tensor the fingerprint reads.
const SAMPLE: u64 = 4096;

/// One record of the tensor index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, for example `blk.3.attn_q_a.weight`.
    pub name: String,
    /// Dimensions in GGUF order: the fastest first.
    pub dims: Vec<u64>,
    /// Storage format.
    pub format: Format,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// A model's identity without reading all of it: SHA-256 over the header, the length, and the start of every tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An opened file whose header was read and checked; no tensor data is mapped.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    length: u64,
    header: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: BTreeMap<String, usize>,
}

impl Gguf {
    /// Reads and checks the header of `path`.
    ///
    /// # Errors
    /// When the file cannot be read or anything in its header is not what GGUF v3 demands.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length == 0 {
            return Err(GgufError::Truncated {
                what: "header".into(),
                needed: 24,
                offset: 0,
                left: 0,
            });
        }
        // SAFETY: the map is read-only and private to this call; as with every mapped model, a file that another process
        // truncates while it is mapped ends this process, which is why model files are written beside and renamed.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let Parsed {
            header,
            metadata,
            tensors: index,
        } = parse(&map, length)?;
        let by_name = names(&index)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            header,
            metadata,
            tensors: index,
            by_name,
        })
    }

    /// Bytes of the header of a file of `length` bytes that begins with `start`: tensor data begins after it.
    ///
    /// # Errors
    /// As [`Gguf::open`]; also when `start` does not hold the whole header.
    pub fn header_length(start: &[u8], length: u64) -> Result<u64, GgufError> {
        parse(start, length).map(|parsed| parsed.header)
    }

    /// The byte ranges that [`Gguf::fingerprint`] reads: the header, then the start of every tensor in file order.
    pub fn identity_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let starts = self
            .tensors
            .iter()
            .map(|tensor| tensor.offset..tensor.offset + tensor.bytes.min(SAMPLE));
        std::iter::once(0..self.header).chain(starts)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The key-value part of the header.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Every tensor, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`, if the file has it.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|i| &self.tensors[*i])
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Reads the header and the first 4 KiB of every tensor: two files that differ in seed or in training differ here.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint, GgufError> {
        let mut digest = Sha256::new();
        digest.update(self.length.to_le_bytes());
        for range in self.identity_ranges() {
            self.digest_range(&mut digest, range.start, range.end - range.start)?;
        }
        Ok(Fingerprint(digest.finalize().into()))
    }

    fn digest_range(&self, digest: &mut Sha256, mut offset: u64, mut left: u64) -> Result<(), GgufError> {
        let mut buffer = [0; 1 << 14];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.file.read_exact_at(&mut buffer[..part], offset);
            read.map_err(|source| GgufError::Io {
                path: self.path.clone(),
                source,
            })?;
            digest.update(&buffer[..part]);
            (offset, left) = (offset + part as u64, left - part as u64);
        }
        Ok(())
    }
}

/// What a header says.
struct Parsed {
    header: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

fn parse(bytes: &[u8], length: u64) -> Result<Parsed, GgufError> {
    let mut cursor = Cursor::new(bytes);
    magic(&mut cursor)?;
    let tensors = cursor.count(SMALLEST_TENSOR, "tensor count")?;
    let pairs = cursor.count(SMALLEST_PAIR, "metadata count")?;
    let metadata = Metadata::read(&mut cursor, pairs)?;
    let mut tensors = (0..tensors)
        .map(|i| record(&mut cursor, i))
        .collect::<Result<Vec<_>, _>>()?;
    let (header, alignment) = (cursor.offset() as u64, alignment(&metadata)?);
    place(
        &mut tensors,
        header.next_multiple_of(alignment),
        length,
        alignment,
    )?;
    Ok(Parsed {
        header,
        metadata,
        tensors,
    })
}

fn magic(cursor: &mut Cursor<'_>) -> Result<(), GgufError> {
    let found = cursor.take(4, "magic")?;
    if found != b"GGUF" {
        return Err(GgufError::Magic {
            found: format!("\"{}\"", found.escape_ascii()),
        });
    }
    match cursor.u32("version")? {
        VERSION => Ok(()),
        found => Err(GgufError::Version { found }),
    }
}

/// Reads one record; the offset is still relative to the data section.
fn record(cursor: &mut Cursor<'_>, i: usize) -> Result<TensorInfo, GgufError> {
    let name = cursor.string(&format!("name of tensor {i}"))?;
    let dimensions = cursor.u32(&name)?;
    if dimensions == 0 || dimensions > MOST_DIMENSIONS {
        return Err(GgufError::unexpected(name, "1 to 4 dimensions", dimensions));
    }
    let dims = (0..dimensions)
        .map(|_| cursor.u64(&name))
        .collect::<Result<Vec<_>, _>>()?;
    let id = cursor.u32(&name)?;
    let format = Format::from_gguf_id(id).ok_or_else(|| {
        let known: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        GgufError::unexpected(
            &name,
            format!("a type out of {}", known.join(", ")),
            format!("type id {id}"),
        )
    })?;
    let bytes = size(&dims, format).ok_or_else(|| {
        GgufError::unexpected(
            &name,
            format!("whole {format} rows of a size that fits"),
            format!("dimensions {dims:?}"),
        )
    })?;
    let offset = cursor.u64(&name)?;
    Ok(TensorInfo {
        name,
        dims,
        format,
        offset,
        bytes,
    })
}

fn size(dims: &[u64], format: Format) -> Option<u64> {
    let (block, bytes) = (format.block_len() as u64, format.block_bytes() as u64);
    if !dims[0].is_multiple_of(block) || dims.contains(&0) {
        return None;
    }
    dims[1..]
        .iter()
        .try_fold((dims[0] / block).checked_mul(bytes)?, |size, dim| {
            size.checked_mul(*dim)
        })
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    if metadata.get(KEY).is_none() {
        return Ok(DEFAULT_ALIGNMENT);
    }
    let found = metadata.integer(KEY)?;
    let usable = found.is_power_of_two() && found <= 1 << 20;
    if usable {
        Ok(found)
    } else {
        Err(GgufError::unexpected(KEY, "a power of two up to 1048576", found))
    }
}

/// Makes offsets absolute; refuses those that are unaligned, outside the file, or inside another tensor.
fn place(index: &mut [TensorInfo], data: u64, length: u64, alignment: u64) -> Result<(), GgufError> {
    for tensor in index.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(GgufError::unexpected(
                &tensor.name,
                format!("an offset aligned to {alignment}"),
                tensor.offset,
            ));
        }
        let end = data
            .checked_add(tensor.offset)
            .and_then(|start| start.checked_add(tensor.bytes));
        if end.is_none_or(|end| end > length) {
            let offset = data.saturating_add(tensor.offset);
            let left = length.saturating_sub(offset);
            let what = format!("tensor {}", tensor.name);
            return Err(GgufError::Truncated {
                what,
                needed: tensor.bytes,
                offset,
                left,
            });
        }
        tensor.offset += data;
    }
    let mut order: Vec<&TensorInfo> = index.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        let end = pair[0].offset + pair[0].bytes;
        if pair[1].offset < end {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(GgufError::Overlap {
                first,
                second,
                end,
                offset: pair[1].offset,
            });
        }
    }
    Ok(())
}

fn names(index: &[TensorInfo]) -> Result<BTreeMap<String, usize>, GgufError> {
    let mut by_name = BTreeMap::new();
    for (i, tensor) in index.iter().enumerate() {
        if by_name.insert(tensor.name.clone(), i).is_some() {
            return Err(GgufError::unexpected(
                &tensor.name,
                "one tensor of this name",
                "two",
            ));
        }
    }
    Ok(by_name)
}
