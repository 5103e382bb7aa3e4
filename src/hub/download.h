// Files of a hub repository into the cache: in parallel, continued after an interruption, checked.
#pragma once

#include <string>
#include <vector>

#include "hub/cache.h"
#include "hub/hub_api.h"

namespace reft {

// Downloads what is not yet in the cache and links all `paths` into the snapshot of `commit`. A
// blob being downloaded is blobs/<etag>.reft-incomplete, beside it <etag>.reft-progress says which
// bytes are there: another try, also of another process, goes on from there. Throws Error naming
// the file.
void download_files(const HubSettings& settings, const HubApi& api, const RepoCache& cache,
                    const std::string& commit, const std::vector<std::string>& paths);

}  // namespace reft
