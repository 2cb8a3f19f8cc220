/** What cloud-init is told in a Debian guest of a test: users, a service for each of two of them, and a way in for scripts. */

/** Of the guest's vsock: a connection is a bash. */
export const SHELL_PORT = 52;

interface UnitFile {
  readonly path: string;
  readonly content: string;
}

const unit = (name: string, content: string): UnitFile => ({ path: `/etc/systemd/system/${name}`, content });

/** A service of a user's own that reads a file once; what it got is in /run/NAME.out, what it was told in /run/NAME.err. */
const reader = (name: string, file: string): UnitFile =>
  unit(
    `${name}.service`,
    `[Service]
Type=oneshot
RemainAfterExit=yes
User=${name}
StandardOutput=file:/run/${name}.out
StandardError=file:/run/${name}.err
ExecStart=-/bin/cat ${file}
`,
  );

const shell: readonly UnitFile[] = [
  unit(
    'shell.socket',
    `[Socket]
ListenStream=vsock::${SHELL_PORT}
Accept=yes
MaxConnections=512
# Readers that are interrupted until they end are many connections in a second.
TriggerLimitIntervalSec=0
[Install]
WantedBy=sockets.target
`,
  ),
  unit(
    'shell@.service',
    `[Unit]
CollectMode=inactive-or-failed
[Service]
ExecStart=-/bin/bash
StandardInput=socket
StandardError=inherit
KillMode=process
`,
  ),
];

export interface CloudConfig {
  /** Users of the system, with a service each that reads `secret`. */
  readonly services: Readonly<Record<string, number>>;
  readonly secret: string;
  /** Commands of the one run. */
  readonly once: readonly string[];
}

/** The text of user-data. JSON is YAML. */
export const cloudConfig = ({ services, secret, once }: CloudConfig): string => {
  const names = Object.keys(services);
  const config = {
    users: ['default', ...Object.entries(services).map(([name, uid]) => ({ name, uid: String(uid), system: true }))],
    write_files: [...names.map((name) => reader(name, secret)), ...shell],
    runcmd: [
      ...once.map((command) => ['sh', '-c', command]),
      ['systemctl', 'start', ...names],
      ['systemctl', 'enable', '--now', 'shell.socket'],
    ],
  };
  return `#cloud-config\n${JSON.stringify(config, undefined, 1)}\n`;
};
