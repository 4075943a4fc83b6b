/** Pictures among what is dropped or chosen: files, and folders with all that is in them. */

const PICTURES = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|ppm)$/i;

/** @typedef {{name: string, file: File}} Named  a file, named by its path in the folder that was given */
/** @typedef {{pictures: Named[], others: number}} Chosen  pictures, and how many files are none */

/** Give the pictures of a file chooser. */
export function chosenFiles(/** @type {FileList | null} */ files) {
  return apart([...(files ?? [])].map((file) => ({ name: file.webkitRelativePath || file.name, file })));
}

/** Give the pictures of a drop; entries are to be asked for before anything is waited for. */
export async function droppedFiles(/** @type {DataTransfer} */ transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (entries.every((entry) => entry === null)) return chosenFiles(transfer.files);
  /** @type {Named[]} */
  const found = [];
  for (const entry of entries) if (entry) await walk(entry, found);
  return apart(found);
}

/** Gather the files of a folder, or the file itself. */
async function walk(/** @type {any} */ entry, /** @type {Named[]} */ found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ name: entry.fullPath.replace(/^\//, ""), file });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (some.length === 0) return;
    for (const inner of some) await walk(inner, found);
  }
}

/** Part pictures from other files. */
function apart(/** @type {Named[]} */ files) {
  const pictures = files.filter(({ file }) => file.type.startsWith("image/") || PICTURES.test(file.name));
  return /** @type {Chosen} */ ({ pictures, others: files.length - pictures.length });
}
