//! Reads what nvcc built: which kernels for which architectures, with their parameters, registers and memory.
//!
//! The container is a header and entries, each PTX text or an ELF image ("cubin"). A kernel's facts lie in the image's `.nv.info` sections as
//! attributes: format, number, and a value or a length and bytes. (Numbers as `cuobjdump -elf` prints them; there is no public specification.)

use std::collections::BTreeMap;

use thiserror::Error;

/// Why bytes are no device code.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("device code: {what}: expected {expected}, found {found}")]
pub struct FatbinError {
    what: &'static str,
    expected: String,
    found: String,
}

/// What one architecture's image says of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Sizes of its parameters in bytes, in order.
    pub parameters: Vec<usize>,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: spilled registers and arrays that are no registers.
    pub stack: u32,
    /// Bytes of shared memory of a block, dynamic memory apart.
    pub shared: u32,
}

/// One entry of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Compute capability, for example 90.
    pub architecture: u32,
    /// Its kernels by name; none for PTX, which is text for the driver to compile.
    pub kernels: BTreeMap<String, Kernel>,
    /// Whether it is PTX.
    pub ptx: bool,
}

const MAGIC: u32 = 0xba55_ed50;
const PTX: u16 = 1;
const ELF: u16 = 2;

/// The images of a fatbin, in order.
///
/// # Errors
/// When the bytes are no fatbin, an entry is cut off or compressed, or an image is no ELF file.
pub fn read(bytes: &[u8]) -> Result<Vec<Image>, FatbinError> {
    let file = Bytes(bytes);
    let magic = file.u32(0)?;
    if magic != MAGIC {
        return Err(refused("magic", format!("{MAGIC:#x}"), format!("{magic:#x}")));
    }
    let (mut at, mut images) = (usize::from(file.u16(6)?), Vec::new());
    let end = at + size(file.u64(8)?)?;
    while at < end {
        let (kind, header, length) = (
            file.u16(at)?,
            file.u32(at + 4)? as usize,
            size(file.u64(at + 8)?)?,
        );
        let (compressed, architecture) = (file.u32(at + 16)?, file.u32(at + 28)?);
        if compressed != 0 {
            return Err(refused(
                "entry",
                "no compression (nvcc -no-compress)",
                format!("{compressed} packed bytes"),
            ));
        }
        let content = Bytes(file.range(at + header, length)?);
        let kernels = match kind {
            PTX => BTreeMap::new(),
            ELF => kernels(content)?,
            other => return Err(refused("kind of entry", "1 (PTX) or 2 (ELF)", other.to_string())),
        };
        images.push(Image {
            architecture,
            kernels,
            ptx: kind == PTX,
        });
        at += header + length;
    }
    Ok(images)
}

/// Attributes that are read.
const PARAMETER: u8 = 0x17;
const REGISTERS: u8 = 0x2f;
const STACK: u8 = 0x11;
/// The value is a length, and that many bytes follow.
const SIZED: u8 = 4;

fn kernels(elf: Bytes<'_>) -> Result<BTreeMap<String, Kernel>, FatbinError> {
    let sections = sections(elf)?;
    let mut kernels = BTreeMap::new();
    for section in &sections {
        if let Some(name) = section.name.strip_prefix(".nv.info.") {
            let mut parameters: Vec<(u16, usize)> = attributes(section.content)?
                .into_iter()
                .filter(|(number, _)| *number == PARAMETER)
                // Index, ordinal, offset, then flags with the size in the upper 14 bits.
                .map(|(_, value)| Ok((value.u16(4)?, (value.u32(8)? >> 18) as usize)))
                .collect::<Result<_, FatbinError>>()?;
            parameters.sort_unstable();
            let parameters = parameters.into_iter().map(|(_, size)| size).collect();
            kernels.insert(
                name.to_owned(),
                Kernel {
                    parameters,
                    ..Kernel::default()
                },
            );
        }
    }
    for section in &sections {
        let shared = section
            .name
            .strip_prefix(".nv.shared.")
            .and_then(|name| kernels.get_mut(name));
        if let Some(kernel) = shared {
            kernel.shared = u32::try_from(section.size).unwrap_or(u32::MAX);
        }
    }
    if let Some(info) = sections.iter().find(|section| section.name == ".nv.info") {
        for (number, value) in attributes(info.content)? {
            if number != REGISTERS && number != STACK {
                continue;
            }
            let symbol = symbol(&sections, value.u32(0)?)?;
            match (kernels.get_mut(&symbol), number) {
                (Some(kernel), REGISTERS) => kernel.registers = value.u32(4)?,
                (Some(kernel), _) => kernel.stack = value.u32(4)?,
                (None, _) => {}
            }
        }
    }
    Ok(kernels)
}

/// Number and value of every attribute that has bytes.
fn attributes(content: Bytes<'_>) -> Result<Vec<(u8, Bytes<'_>)>, FatbinError> {
    let (mut at, mut found) = (0, Vec::new());
    while at < content.0.len() {
        let [format, number] = content.u16(at)?.to_le_bytes();
        let length = if format == SIZED {
            usize::from(content.u16(at + 2)?)
        } else {
            0
        };
        found.push((number, Bytes(content.range(at + 4, length)?)));
        at += 4 + length;
    }
    Ok(found)
}

struct Section<'a> {
    name: String,
    content: Bytes<'a>,
    size: usize,
}

/// `SHT_NOBITS`: a section without bytes in the file.
const WITHOUT_BYTES: u32 = 8;

/// Sections of a 64-bit little-endian ELF file.
fn sections(elf: Bytes<'_>) -> Result<Vec<Section<'_>>, FatbinError> {
    if elf.range(0, 5)? != b"\x7fELF\x02" {
        return Err(refused(
            "image",
            "a 64-bit ELF file",
            format!("{:02x?}", elf.range(0, 5)?),
        ));
    }
    let (start, entry) = (size(elf.u64(0x28)?)?, usize::from(elf.u16(0x3a)?));
    let (count, names) = (usize::from(elf.u16(0x3c)?), usize::from(elf.u16(0x3e)?));
    let header = |i: usize| start + i * entry;
    let content = |i: usize| {
        let (offset, length) = (
            size(elf.u64(header(i) + 0x18)?)?,
            size(elf.u64(header(i) + 0x20)?)?,
        );
        let without = elf.u32(header(i) + 4)? == WITHOUT_BYTES;
        Ok::<_, FatbinError>((
            Bytes(elf.range(offset, if without { 0 } else { length })?),
            length,
        ))
    };
    let names = content(names)?.0;
    let section = |i: usize| {
        let (content, size) = content(i)?;
        Ok(Section {
            name: names.text(elf.u32(header(i))? as usize)?,
            content,
            size,
        })
    };
    (0..count).map(section).collect()
}

/// Bytes of a symbol table's entry.
const SYMBOL: usize = 24;

fn symbol(sections: &[Section<'_>], index: u32) -> Result<String, FatbinError> {
    let named = |name: &str| {
        let found = sections.iter().find(|section| section.name == name);
        found
            .map(|section| section.content)
            .ok_or_else(|| refused("section", name, "none".to_owned()))
    };
    let at = named(".symtab")?.u32(index as usize * SYMBOL)?;
    named(".strtab")?.text(at as usize)
}

/// Bytes whose reads are checked.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn range(self, at: usize, length: usize) -> Result<&'a [u8], FatbinError> {
        let end = at.checked_add(length);
        end.and_then(|end| self.0.get(at..end)).ok_or_else(|| {
            refused(
                "length",
                format!("{length} bytes from byte {at}"),
                format!("{} bytes in all", self.0.len()),
            )
        })
    }

    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], FatbinError> {
        let mut out = [0; N];
        out.copy_from_slice(self.range(at, N)?);
        Ok(out)
    }

    fn u16(self, at: usize) -> Result<u16, FatbinError> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(self, at: usize) -> Result<u32, FatbinError> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(self, at: usize) -> Result<u64, FatbinError> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// The text that ends with a zero.
    fn text(self, at: usize) -> Result<String, FatbinError> {
        let rest = self.range(at, self.0.len().saturating_sub(at))?;
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}

fn size(value: u64) -> Result<usize, FatbinError> {
    usize::try_from(value).map_err(|_| refused("length", "less than the address space", value.to_string()))
}

fn refused(what: &'static str, expected: impl Into<String>, found: String) -> FatbinError {
    FatbinError {
        what,
        expected: expected.into(),
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn what_is_no_device_code_is_refused() {
        assert!(read(b"").is_err());
        assert!(
            read(&[0; 64])
                .expect_err("no image")
                .to_string()
                .contains("magic")
        );
        let mut cut = 0xba55_ed50u32.to_le_bytes().to_vec();
        cut.extend([1, 0, 16, 0]);
        cut.extend(64u64.to_le_bytes());
        assert!(
            read(&cut)
                .expect_err("a cut image")
                .to_string()
                .contains("16 bytes in all")
        );
    }
}
