/**
 * An image as an OCI artifact: a manifest (OCI image-spec 1.1, "Guidelines for Artifact Usage") that names a config and the
 * files. Its digest is that of the manifest, which names the digests of all else.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { ImageRefusal } from './error.ts';

export const manifestType = 'application/vnd.oci.image.manifest.v1+json';
export const indexType = 'application/vnd.oci.image.index.v1+json';
const artifactTypes = {
  disk: 'application/vnd.porthole.image.disk.v1',
  kernel: 'application/vnd.porthole.image.kernel.v1',
} as const;
const configType = 'application/vnd.porthole.image.config.v1+json';
const fileTypes = {
  disk: 'application/vnd.porthole.image.disk.v1.qcow2',
  kernel: 'application/vnd.porthole.image.kernel.v1',
  initrd: 'application/vnd.porthole.image.initrd.v1',
} as const;

/** Of a manifest or a config, which are small. */
export const mostDocumentBytes = 64 * 1024;

export const digestPattern = /^sha256:[0-9a-f]{64}$/;
const sizeBytes = z.int().nonnegative();

export const Descriptor = z.looseObject({
  mediaType: z.string(),
  digest: z.string().regex(digestPattern),
  size: sizeBytes,
});
export type Descriptor = z.infer<typeof Descriptor>;

const Manifest = z.looseObject({
  schemaVersion: z.literal(2),
  artifactType: z.enum([artifactTypes.disk, artifactTypes.kernel]),
  config: Descriptor,
  layers: z.array(Descriptor).min(1).max(2),
});

const Config = z.discriminatedUnion('kind', [
  z.looseObject({ kind: z.literal('disk'), virtualBytes: z.int().positive() }),
  z.looseObject({ kind: z.literal('kernel'), commandLine: z.string() }),
]);
export type ImageConfig = z.infer<typeof Config>;

export type FileName = keyof typeof fileTypes;

/** What a manifest names. */
export interface ManifestParts {
  readonly config: Descriptor;
  readonly files: Partial<Readonly<Record<FileName, Descriptor>>>;
}

/** A small blob of ours, as bytes that are always the same for the same content. */
export interface Document {
  readonly bytes: Uint8Array;
  readonly descriptor: Descriptor;
}

export const digestOf = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

const documentOf = (mediaType: string, content: object): Document => {
  const bytes = new TextEncoder().encode(JSON.stringify(content));
  return { bytes, descriptor: { mediaType, digest: digestOf(bytes), size: bytes.length } };
};

export const configOf = (config: ImageConfig): Document => documentOf(configType, config);

export const manifestOf = (
  kind: ImageConfig['kind'],
  config: Descriptor,
  files: Partial<Record<FileName, Omit<Descriptor, 'mediaType'>>>,
): Document =>
  documentOf(manifestType, {
    schemaVersion: 2,
    mediaType: manifestType,
    artifactType: artifactTypes[kind],
    config,
    layers: (['disk', 'kernel', 'initrd'] as const).flatMap((name) => {
      const file = files[name];
      return file === undefined
        ? []
        : [
            {
              mediaType: fileTypes[name],
              ...file,
              annotations: { 'org.opencontainers.image.title': name === 'disk' ? 'disk.qcow2' : name },
            },
          ];
    }),
  });

const malformed = (cause: unknown): ImageRefusal =>
  new ImageRefusal('HOST_INVALID', 'the image is none of ours: its manifest is of another kind, or malformed', cause);

const parsed = <S extends z.ZodType>(schema: S, bytes: Uint8Array): z.infer<S> => {
  try {
    return schema.parse(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)));
  } catch (error) {
    throw malformed(error);
  }
};

/** HOST_INVALID. */
export const readManifest = (bytes: Uint8Array): ManifestParts => {
  const { artifactType, config, layers } = parsed(Manifest, bytes);
  const files: Partial<Record<FileName, Descriptor>> = {};
  for (const layer of layers) {
    const name = (Object.keys(fileTypes) as FileName[]).find((one) => fileTypes[one] === layer.mediaType);
    if (name === undefined || files[name] !== undefined) throw malformed(layer.mediaType);
    files[name] = layer;
  }
  const isWhole = artifactType === artifactTypes.disk ? layers.length === 1 && files.disk : files.kernel && !files.disk;
  if (!isWhole || config.size > mostDocumentBytes) throw malformed(artifactType);
  return { config, files };
};

/** HOST_INVALID. */
export const readConfig = (bytes: Uint8Array): ImageConfig => parsed(Config, bytes);

/** All that a manifest names. */
export const partsOf = ({ config, files }: ManifestParts): Descriptor[] => [config, ...Object.values(files)];
