export { ImageRefusal } from './error.ts';
export { fetchBlob, fetchDocument } from './fetch.ts';
export { ImageLibrary, type ImageLibraryOptions } from './library.ts';
export { type FileName, type ImageConfig, type ManifestParts, readConfig, readManifest } from './manifest.ts';
export type { Recipes } from './recipe.ts';
