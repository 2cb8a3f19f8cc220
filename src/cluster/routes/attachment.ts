/** What starts a VM that others run, and hears that they did. */
import { createRoute, z } from '@hono/zod-openapi';
import { changing, IdempotencyHeaders, json, problems, security, VmParams } from './common.ts';

const hostPath = z.string().regex(/^\/[^\p{C}]{1,1023}$/u, 'an absolute path');

const AttachedMachineQuery = z
  .strictObject({
    memoryMiB: z.coerce.number().int().min(64).max(16_777_216).default(1024),
    vcpus: z.coerce.number().int().min(1).max(1024).default(1),
    disk: hostPath.optional(),
    diskFormat: z
      .enum(['qcow2', 'raw'])
      .optional()
      .openapi({ description: 'Needed with `disk`: it is never guessed.' }),
    kernel: hostPath.optional(),
    initrd: hostPath.optional(),
    kernelArguments: z
      .string()
      .regex(/^[^\p{C}]{0,2000}$/u, 'one line')
      .optional(),
  })
  .refine((machine) => (machine.disk === undefined) === (machine.diskFormat === undefined), {
    path: ['diskFormat'],
    message: 'disk and diskFormat belong together',
  })
  .refine((machine) => machine.kernel !== undefined || (machine.initrd ?? machine.kernelArguments) === undefined, {
    path: ['kernel'],
    message: 'initrd and kernelArguments are for a kernel',
  });

export const getAttachment = createRoute({
  operationId: 'getAttachment',
  method: 'get',
  path: '/v1/vms/{name}/attachment',
  tags: ['VMs'],
  summary: 'What QEMU, Cloud Hypervisor and libvirt need to attach a VM’s device',
  description: 'The query says what machine it is for; files are named by absolute paths of the host.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, query: AttachedMachineQuery },
  responses: {
    200: json(
      z
        .object({
          socketPath: z.string(),
          tag: z.string(),
          qemu: z.array(z.string()),
          cloudHypervisor: z.array(z.string()),
          libvirtXml: z.string(),
          libvirtDomain: z.string(),
          mount: z.string(),
          ninep: z
            .object({ socketPath: z.string(), qemu: z.array(z.string()), libvirtXml: z.string(), mount: z.string() })
            .optional()
            .openapi({ description: 'The console that speaks 9P, of a VM that has one; the other flags are without.' }),
          vsock: z
            .object({
              hostPath: z.string(),
              qemu: z.array(z.string()),
              mount: z.string(),
              ofOthers: z
                .object({
                  socketPath: z.string(),
                  cloudHypervisor: z.array(z.string()),
                  firecracker: z.object({ guest_cid: z.int(), uds_path: z.string() }),
                  mount: z.string(),
                })
                .openapi({
                  description:
                    'For a monitor with a vsock device of its own: what it is given, by way of example, and the socket to which a link named as its own with `_564` after it must lead.',
                }),
            })
            .optional()
            .openapi({ description: 'The vsock device, of a VM that has one; the other flags are without.' }),
          metadataServer: z
            .object({
              serial: z
                .object({ socketPath: z.string(), qemu: z.array(z.string()), libvirtXml: z.string() })
                .optional(),
              vsock: z.object({ socketPath: z.string(), port: z.int() }).optional(),
              sockets: z.object({ any: z.string(), privileged: z.string() }).optional(),
            })
            .optional()
            .openapi({
              description:
                'Of a VM with a metadata server: the virtio-serial port; the vsock port, and the socket it leads to; the sockets for relays of what any program of the guest may open, and of what only its root may.',
            }),
        })
        .openapi('Attachment'),
      'Flags, one argument each; XML for libvirt, as parts of a domain and as a whole one; the line that mounts it.',
    ),
    ...problems('VM_NOT_FOUND', 'WRONG_STATE', 'UNSUPPORTED'),
  },
});

export const tellBoot = createRoute({
  operationId: 'tellBoot',
  method: 'post',
  path: '/v1/vms/{name}/boots',
  tags: ['VMs'],
  summary: 'Tell of a new boot of an attached VM',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, headers: IdempotencyHeaders },
  responses: {
    201: json(z.object({ bootId: z.string(), number: z.int() }), 'Its boot id and number.'),
    ...problems('VM_NOT_FOUND', 'WRONG_STATE', 'UNSUPPORTED', ...changing),
  },
});
