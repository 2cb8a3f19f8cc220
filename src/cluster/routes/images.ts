/** Images, and the files that they are made from. */
import { createRoute, z } from '@hono/zod-openapi';
import {
  binaryBody,
  body,
  bytes,
  changing,
  IdempotencyHeaders,
  json,
  problems,
  security,
  Time,
  VmName,
} from './common.ts';
import { ImageName, ImageVersion } from './new-vm.ts';
import { OperationShape } from './vms.ts';

export const ImageShape = z
  .object({
    name: z.string(),
    version: z.string(),
    digest: z.string(),
    sizeBytes: z.int(),
    virtualSizeBytes: z.int(),
    regions: z.array(z.string()).openapi({ description: 'Which have its bytes: VMs are made from it there.' }),
    createdAt: Time,
  })
  .openapi('Image');

const uploadId = z
  .string()
  .regex(/^up-[0-9a-f]{32}$/)
  .openapi({ description: '`id` of an upload, which is used up.' });
const hostFile = z.string().startsWith('/').max(4096).openapi({
  description:
    'Absolute path of a file on the manager’s machine. Only over the unix socket: it is read with the daemon’s rights.',
});
const ImageFileShape = z.union([z.strictObject({ upload: uploadId }), z.strictObject({ file: hostFile })]);

export const AddImage = z
  .strictObject({
    name: ImageName,
    version: ImageVersion.optional().openapi({ description: 'Default: the next whole number.' }),
    upload: uploadId.optional(),
    file: hostFile.optional(),
    format: z
      .enum(['qcow2', 'raw'])
      .default('qcow2')
      .openapi({ description: 'Of the disk in `upload` or `file`; it is never guessed.' }),
    kernel: z
      .strictObject({
        kernel: ImageFileShape,
        initrd: ImageFileShape.optional(),
        commandLine: z
          .string()
          .max(1024)
          .regex(/^[\x20-\x7e]*$/, 'visible ASCII characters and spaces')
          .default('')
          .openapi({ description: 'After `console=…`, which is given anyway.' }),
      })
      .optional()
      .openapi({
        description:
          'Instead of a disk: what is booted without firmware. Its machines have a disk only where `diskBytes` asks for one.',
      }),
    recipe: z.string().max(63).optional().openapi({ description: 'Name of a recipe that the manager builds.' }),
  })
  .refine(
    ({ file, upload, kernel, recipe }) =>
      [file, upload, kernel, recipe].filter((source) => source !== undefined).length === 1,
    'give one of upload, file, kernel and recipe',
  )
  .openapi('AddImage');

export const UploadShape = z
  .object({
    id: z.string(),
    sizeBytes: z.int(),
    digest: z.string().openapi({ description: '`sha256:` and 64 hex digits: compare.' }),
    expiresAt: Time,
  })
  .openapi('Upload');

export const uploadFile = createRoute({
  operationId: 'uploadFile',
  method: 'post',
  path: '/v1/uploads',
  tags: ['Images'],
  summary: 'Upload a file that an image is to be made from',
  description:
    'The body is the file, as it is, with its `Content-Length`; `Expect: 100-continue` tells a refusal before it is sent. It is kept until an image is added from it, for 10 minutes at most and not over a restart of the host daemon. It may take as long as it likes, but not stand still for a minute. A repeat with the same `Idempotency-Key` and `Content-Length` is answered without the file while the first is kept.',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: { headers: IdempotencyHeaders, body: binaryBody },
  responses: {
    201: json(UploadShape, 'It is there.'),
    ...problems('TOO_LARGE', 'FULL', 'IDEMPOTENCY_MISMATCH', 'IDEMPOTENCY_BUSY'),
  },
});

export const PartialUploadShape = z
  .object({
    id: z.string(),
    receivedBytes: z.int(),
    digest: z.string().optional().openapi({ description: '`sha256:` and 64 hex digits, once it is whole: compare.' }),
    expiresAt: Time,
  })
  .openapi('PartialUpload');

const UploadParams = z.object({ upload: uploadId.openapi({ param: { name: 'upload', in: 'path' } }) });

export const resumeUpload = createRoute({
  operationId: 'resumeUpload',
  method: 'patch',
  path: '/v1/uploads/{upload}',
  tags: ['Images'],
  summary: 'Upload a file in as many pieces as it takes',
  description:
    'The body is the bytes of the file from `offset` on, with its `Content-Length`; as many as there may be of the rest. The id is made by who sends: `up-` and 128 random bits in hex. What came stays when the connection breaks, for a day and over a restart: ask for `receivedBytes`, and go on there. A second request about the same file ends the first. Once all `sizeBytes` are there, it is kept as one that was uploaded at once.',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: {
    params: UploadParams,
    query: z.strictObject({
      offset: z.coerce
        .number()
        .int()
        .nonnegative()
        .openapi({ param: { name: 'offset', in: 'query' } }),
      sizeBytes: z.coerce
        .number()
        .int()
        .positive()
        .openapi({ param: { name: 'sizeBytes', in: 'query' }, description: 'Of the whole file.' }),
    }),
    body: binaryBody,
  },
  responses: {
    200: json(PartialUploadShape, 'What is there now.'),
    ...problems('TOO_LARGE', 'FULL', 'WRONG_STATE'),
  },
});

export const findUpload = createRoute({
  operationId: 'findUpload',
  method: 'get',
  path: '/v1/uploads/{upload}',
  tags: ['Images'],
  summary: 'Show how much of a file is there',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: { params: UploadParams },
  responses: { 200: json(PartialUploadShape, 'What is there.'), ...problems('NOT_FOUND') },
});

const ImageParams = z.object({
  image: ImageName.openapi({ param: { name: 'image', in: 'path' } }),
  version: ImageVersion.openapi({ param: { name: 'version', in: 'path' } }),
});

export const listImages = createRoute({
  operationId: 'listImages',
  method: 'get',
  path: '/v1/images',
  tags: ['Images'],
  summary: 'List images, of all regions',
  'x-access': 'viewer',
  'x-scope': 'account',
  security,
  responses: { 200: json(z.object({ images: z.array(ImageShape) }), 'All of them.'), ...problems() },
});

export const addImage = createRoute({
  operationId: 'addImage',
  method: 'post',
  path: '/v1/images',
  tags: ['Images'],
  summary: 'Add an image, or a new version of one',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: { headers: IdempotencyHeaders, body: body(AddImage) },
  responses: {
    202: json(OperationShape, 'It is being checked and converted.'),
    ...problems('WRONG_STATE', 'NAME_TAKEN', 'CONFLICT', ...changing),
  },
});

export const getImage = createRoute({
  operationId: 'getImage',
  method: 'get',
  path: '/v1/images/{image}/{version}',
  tags: ['Images'],
  summary: 'Show an image',
  'x-access': 'viewer',
  'x-scope': 'account',
  security,
  request: { params: ImageParams },
  responses: { 200: json(ImageShape, 'The image.'), ...problems('NOT_FOUND') },
});

export const removeImage = createRoute({
  operationId: 'removeImage',
  method: 'delete',
  path: '/v1/images/{image}/{version}',
  tags: ['Images'],
  summary:
    'Remove the region’s copy of a version of an image, which no VM of the region uses; the name goes with the last copy',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: { params: ImageParams, headers: IdempotencyHeaders },
  responses: {
    204: { description: 'It is gone.' },
    ...problems('NOT_FOUND', 'IMAGE_IN_USE', 'CONFLICT', ...changing),
  },
});

export const copyImage = createRoute({
  operationId: 'copyImage',
  method: 'post',
  path: '/v1/images/{image}/{version}/copy',
  tags: ['Images'],
  summary: 'Copy an image to this region from another',
  description:
    'By its digest, which is verified. What a copy that broke off has brought is gone on with, by itself for as long as the operation runs, and by the next request.',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: {
    params: ImageParams,
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          from: VmName.optional().openapi({ description: 'A region that has it. Default: any.' }),
          move: z.boolean().default(false).openapi({
            description:
              'Remove the copy there once it is here, which fails while a VM there uses it: then both have it.',
          }),
        })
        .openapi('CopyImage'),
    ),
  },
  responses: {
    202: json(OperationShape, 'It is being copied.'),
    ...problems('NOT_FOUND', 'WRONG_STATE', 'CONFLICT', ...changing),
  },
});

export const readImageBlob = createRoute({
  operationId: 'readImageBlob',
  method: 'get',
  path: '/v1/images/{image}/{version}/blobs/{digest}',
  tags: ['Images'],
  summary: 'Read a part of an image that this region has',
  description:
    'The digest of the image is that of its manifest (OCI image-spec), which names the digests of its config and files.',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: {
    params: ImageParams.extend({
      digest: z
        .string()
        .regex(/^sha256:[0-9a-f]{64}$/)
        .openapi({ param: { name: 'digest', in: 'path' } }),
    }),
    query: z.strictObject({
      offset: z.coerce
        .number()
        .int()
        .nonnegative()
        .default(0)
        .openapi({ param: { name: 'offset', in: 'query' }, description: 'Where to begin.' }),
    }),
  },
  responses: { 200: bytes('The bytes from there on.'), ...problems('NOT_FOUND') },
});
